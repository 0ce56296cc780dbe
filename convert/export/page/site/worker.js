/** The model in a thread of its own, so that the page stays quick while it computes. */

import { findEverything } from "./everything.js";
import { packPrompt } from "./geometry.js";
import { Model } from "./model.js";

/**
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./geometry.js").Prompt} Prompt
 * @typedef {{id: number} & (
 *   {task: "open", about: import("./model.js").About, backend: import("./model.js").Backend, base: string} |
 *   {task: "photo", file: Blob} |
 *   {task: "decode", prompt: Prompt} |
 *   {task: "everything", perSide: number, picture: Size} |
 *   {task: "stop"})} Request
 */

/** @type {Model | null} */
let model = null;
/** @type {Size} */
let size = { width: 0, height: 0 };
let stopped = false;

/**
 * Pixels as they are stored: turned the way that the file says, colours and transparency as they are.
 * @param {Blob} file
 */
async function readPixels(file) {
  const options = /** @type {const} */ ({ colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const bitmap = await createImageBitmap(file, { ...options, imageOrientation: "from-image" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error("This browser draws no pictures of this size.");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/**
 * @param {Request} request
 * @param {(share: number) => void} progress
 * @returns {Promise<unknown>}
 */
async function answer(request, progress) {
  if (request.task === "open") {
    model = await Model.open(request.about, request.backend, request.base, progress);
    return { threads: model.threads };
  }
  if (request.task === "stop") {
    stopped = true;
    return null;
  }
  if (model === null) throw new Error("No model is open.");
  const start = performance.now();
  if (request.task === "photo") {
    const pixels = await readPixels(request.file);
    await model.encode(pixels);
    size = { width: pixels.width, height: pixels.height };
    return { ...size, milliseconds: performance.now() - start };
  }
  if (request.task === "decode") {
    const [decoded] = await model.decode([packPrompt(request.prompt, size, model.about.image_size)]);
    return { ...decoded, milliseconds: performance.now() - start };
  }
  stopped = false;
  let last = start;
  const goOn = async (/** @type {number} */ share) => {
    if (performance.now() - last > 100) {
      progress(share);
      last = performance.now();
    }
    await new Promise((resolve) => setTimeout(resolve)); // so that a word to stop is heard
    return !stopped;
  };
  const found = await findEverything(model, size, request.picture, request.perSide, goOn);
  return { found, milliseconds: performance.now() - start };
}

/** @param {Request} request */
async function reply(request) {
  const { id } = request;
  try {
    const result = await answer(request, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error instanceof Error ? error.message : String(error) });
  }
}

/** One after the other, for a session of the runtime does one thing at a time. */
let queue = Promise.resolve();
self.addEventListener("message", (/** @type {MessageEvent<Request>} */ { data }) => {
  if (data.task === "stop") reply(data);
  else queue = queue.then(() => reply(data));
});
