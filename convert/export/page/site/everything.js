/**
 * Masks of everything on a photo: a grid of points, filters, no duplicates.
 *
 * The procedure of `repvit_sam_jax/inference/mask_generator.py` without crops. Masks are measured at the size of the
 * picture that is shown; for a photo that is shown at its own size the result is the generator's.
 */

import { isAmbiguous, packPrompt } from "./geometry.js";
import { measure, nms, Upscaler } from "./masks.js";

/**
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./geometry.js").Prompt} Prompt
 * @typedef {import("./masks.js").Extent} Extent
 * @typedef {import("./model.js").Model} Model
 * @typedef {{logits: Float32Array, iou: number, stability: number, area: number, extent: Extent,
 *   prompt: Prompt}} Found a mask; extent and area at the picture's size
 */

/** Points that are decoded at once. */
const BATCH = 16;
/** Overlap of boxes above which the less sure mask is a duplicate. */
const DUPLICATE = 0.7;

/**
 * Centres of equal cells of the photo, row by row.
 * @param {number} perSide
 * @param {Size} size
 * @returns {Prompt[]}
 */
export function grid(perSide, size) {
  const centre = (/** @type {number} */ i) => (i + 0.5) / perSide;
  return Array.from({ length: perSide * perSide }, (_, i) => ({
    points: [{ x: centre(i % perSide) * size.width, y: centre(Math.floor(i / perSide)) * size.height, label: 1 }],
    box: null,
  }));
}

/**
 * All masks, the surest first.
 * @param {Model} model with a photo that is encoded
 * @param {Size} size of the photo
 * @param {Size} picture that the masks are measured on
 * @param {number} perSide points along each side
 * @param {(share: number) => boolean | Promise<boolean>} progress is told the share of points that are done, and says
 *   whether to go on
 * @returns {Promise<Found[]>} what was found until then
 */
export async function findEverything(model, size, picture, perSide, progress) {
  const { about } = model;
  const upscaler = new Upscaler(size, about.image_size, about.image_size / 4, picture);
  const prompts = grid(perSide, size);
  /** @type {Found[]} */
  const found = [];
  for (let start = 0; start < prompts.length; start += BATCH) {
    const group = prompts.slice(start, start + BATCH);
    const decoded = await model.decode(group.map((prompt) => packPrompt(prompt, size, about.image_size)));
    group.forEach((prompt, i) => {
      for (const number of candidates(prompt)) {
        const one = examine(upscaler, decoded[i].masks[number], decoded[i].iou[number], about);
        if (one !== null) found.push({ ...one, prompt });
      }
    });
    if (!(await progress(Math.min(1, (start + BATCH) / prompts.length)))) break;
  }
  const boxes = found.map((one) => one.extent);
  return nms(boxes, found.map((one) => one.iou), DUPLICATE).map((i) => found[i]);
}

/**
 * Numbers of the decoder's masks that answer a prompt: three if it is ambiguous, or the one.
 * @param {Prompt} prompt
 * @returns {number[]}
 */
export function candidates(prompt) {
  return isAmbiguous(prompt) ? [1, 2, 3] : [0];
}

/**
 * A mask with its figures, or null if a filter drops it.
 * @param {Upscaler} upscaler
 * @param {Float32Array} logits
 * @param {number} iou that was predicted
 * @param {import("./model.js").About} about
 */
function examine(upscaler, logits, iou, about) {
  const { pred_iou_thresh, stability_score_thresh, stability_score_offset } = about.generator;
  if (pred_iou_thresh > 0 && !(iou > pred_iou_thresh)) return null;
  const part = upscaler.part(logits, about.mask_threshold - stability_score_offset);
  const figures = measure(part, about.mask_threshold, stability_score_offset);
  if (figures === null || (stability_score_thresh > 0 && !(figures.stability >= stability_score_thresh))) return null;
  return { logits, iou, ...figures };
}
