/** The photo on the screen, with what is drawn over it. */

import { fitWithin } from "./geometry.js";
import { Upscaler } from "./masks.js";
import { drawCursor, drawMask, drawPrompt, WHITE } from "./overlay.js";

/**
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./geometry.js").Prompt} Prompt
 * @typedef {import("./overlay.js").Colour} Colour
 */

/** Pixels of the longer side of what is drawn; masks are downloaded at the photo's own size. */
const LONGEST = 1280;

/**
 * An element of the page.
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`The page has no ${id}.`);
  return found;
}

/** @param {HTMLCanvasElement} canvas */
function contextOf(canvas) {
  const context = canvas.getContext("2d");
  if (context === null) throw new Error("This browser draws no pictures.");
  return context;
}

export class View {
  /** @param {import("./model.js").About} about */
  constructor(about) {
    this.about = about;
    this.photo = element("photo", HTMLCanvasElement);
    this.overlay = element("overlay", HTMLCanvasElement);
    /** @type {Size} */
    this.size = { width: 1, height: 1 };
    this.upscaler = new Upscaler(this.size, about.image_size, about.image_size / 4);
  }

  /** The size at which the photo is shown, or less where it is small. */
  get picture() {
    return fitWithin(this.size, LONGEST);
  }

  /** @param {ImageBitmap} bitmap of a photo */
  show(bitmap) {
    this.size = { width: bitmap.width, height: bitmap.height };
    const many = 1e4; // so that outlines are fine on small photos as well
    const drawn = fitWithin({ width: this.size.width * many, height: this.size.height * many }, LONGEST);
    this.upscaler = new Upscaler(this.size, this.about.image_size, this.about.image_size / 4, drawn);
    [this.overlay.width, this.overlay.height] = [drawn.width, drawn.height];
    [this.photo.width, this.photo.height] = [this.picture.width, this.picture.height];
    element("picture", HTMLElement).style.setProperty("--aspect", String(bitmap.width / bitmap.height));
    const context = contextOf(this.photo);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, this.photo.width, this.photo.height);
  }

  /**
   * Masks of the photo's own size are made of logits when they are wanted.
   * @returns {Upscaler}
   */
  fullSize() {
    return new Upscaler(this.size, this.about.image_size, this.about.image_size / 4);
  }

  /** Pixels of the canvas that are one on the screen. */
  get unit() {
    return Math.max(0.5, this.overlay.width / (this.overlay.clientWidth || this.overlay.width));
  }

  /**
   * Draw masks, the prompt and the cursor.
   * @param {{masks: Float32Array[], isOne: boolean, prompt: Prompt | null,
   *   cursor: import("./geometry.js").Point | null, opacity: number}} what masks are logits [S/4, S/4]; a single one is
   *   blue, several have colours of their own
   */
  draw({ masks, isOne, prompt, cursor, opacity }) {
    const { width, height } = this.overlay;
    const context = contextOf(this.overlay);
    const picture = new ImageData(width, height);
    const { colours, mask_threshold: threshold } = this.about;
    const line = Math.max(1.5, (isOne ? 2 : 1.2) * this.unit);
    masks.forEach((logits, i) => {
      const tint = colours[i % colours.length];
      const style = { threshold, tint, line: isOne ? WHITE : tint, opacity, width: line };
      drawMask(picture, this.upscaler.part(logits, threshold), style);
    });
    context.putImageData(picture, 0, 0);
    if (prompt !== null) drawPrompt(context, prompt, this.size, this.unit);
    if (cursor !== null) drawCursor(context, cursor, this.size, this.unit);
  }

  /** The photo with what is drawn over it. */
  merged() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.photo.width, this.photo.height];
    const context = contextOf(canvas);
    context.drawImage(this.photo, 0, 0);
    context.drawImage(this.overlay, 0, 0, canvas.width, canvas.height);
    return canvas;
  }
}
