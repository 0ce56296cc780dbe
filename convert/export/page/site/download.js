/** Results as files. */

import { measure, toRle } from "./masks.js";
import { toPolygons } from "./polygons.js";

/**
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {{logits: Float32Array, iou: number, prompt: import("./geometry.js").Prompt}} Saved
 */

/**
 * Let the browser save a file.
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * A mask in black and white.
 * @param {Uint8Array} mask
 * @param {Size} size
 */
export async function maskToPng(mask, size) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [size.width, size.height];
  const picture = new ImageData(size.width, size.height);
  const words = new Uint32Array(picture.data.buffer);
  const [black, white] = new Uint32Array(new Uint8Array([0, 0, 0, 255, 255, 255, 255, 255]).buffer);
  mask.forEach((inside, i) => (words[i] = inside ? white : black));
  canvas.getContext("2d")?.putImageData(picture, 0, 0);
  return canvasToPng(canvas);
}

/**
 * @param {HTMLCanvasElement} canvas
 * @returns {Promise<Blob>}
 */
export function canvasToPng(canvas) {
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture is too large to be saved.")))),
  );
}

/**
 * COCO's form: the photo, and SAM's records as annotations, as `repvit-sam everything` writes them, with the prompts.
 * @param {string} name of the photo
 * @param {import("./masks.js").Upscaler} upscaler to the photo's size
 * @param {import("./model.js").About} about
 * @param {Saved[]} masks
 * @param {boolean} asPolygons in place of compressed RLE
 */
export function toCoco(name, upscaler, about, masks, asPolygons) {
  const { size } = upscaler;
  const { mask_threshold: threshold, generator } = about;
  const offset = generator.stability_score_offset;
  const annotations = masks.map(({ logits, iou, prompt }, i) => {
    const figures = measure(upscaler.part(logits, threshold - offset), threshold, offset);
    const { x1, y1, x2, y2 } = figures?.extent ?? { x1: 0, y1: 0, x2: 0, y2: 0 };
    const mask = upscaler.mask(logits, threshold);
    return {
      id: i + 1,
      image_id: 1,
      category_id: 1,
      iscrowd: 0,
      segmentation: asPolygons ? toPolygons(mask, size) : toRle(mask, size),
      area: figures?.area ?? 0,
      bbox: [x1, y1, x2 - x1, y2 - y1],
      predicted_iou: iou,
      point_coords: prompt.points.map(({ x, y }) => [x, y]),
      point_labels: prompt.points.map(({ label }) => label),
      prompt_box: prompt.box && [prompt.box.x1, prompt.box.y1, prompt.box.x2, prompt.box.y2],
      stability_score: figures?.stability ?? null,
      crop_box: [0, 0, size.width, size.height],
    };
  });
  const images = [{ id: 1, file_name: name, width: size.width, height: size.height }];
  const content = { images, annotations, categories: [{ id: 1, name: "object" }] };
  return new Blob([JSON.stringify(content, null, 1)], { type: "application/json" });
}
