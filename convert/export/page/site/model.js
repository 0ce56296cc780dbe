/** The exported encoder and decoder in ONNX Runtime, on the graphics processor or in WebAssembly. */

import { isAmbiguous, packPrompt, preprocess } from "./geometry.js";

/**
 * @typedef {import("./geometry.js").Pixels} Pixels
 * @typedef {import("./geometry.js").Prompt} Prompt
 * @typedef {"webgpu" | "wasm"} Backend
 * @typedef {{path: string, bytes: number, sha256: string}} Entry a file of the page
 * @typedef {{name: string, image_size: number, mask_threshold: number, mean: number[], std: number[],
 *   generator: {pred_iou_thresh: number, stability_score_thresh: number, stability_score_offset: number},
 *   encoder: Entry, decoder: Entry, runtime: {version: string, files: Entry[]}, colours: number[][],
 *   self_test: {mask: number, counts: number[]}}} About what `model.json` says
 * @typedef {ReturnType<typeof packPrompt>} Packed
 * @typedef {{masks: Float32Array[], iou: Float32Array}} Decoded four masks [S/4, S/4]: one for clear prompts, and three
 *   for ambiguous ones
 * @typedef {typeof import("onnxruntime-web")} Runtime
 * @typedef {import("onnxruntime-web").InferenceSession} Session
 */

/** Bundles of onnxruntime-web; each finds its .wasm file beside itself. */
const BUNDLES = { webgpu: "runtime/ort.webgpu.bundle.min.mjs", wasm: "runtime/ort.wasm.bundle.min.mjs" };
const MOST_THREADS = 4;
/** Share of pixels of the self-test that a graphics processor may have otherwise. */
const TOLERANCE = 1e-3;

export class Model {
  /**
   * @param {Runtime} ort
   * @param {About} about
   * @param {Session} encoder
   * @param {Session} decoder
   */
  constructor(ort, about, encoder, decoder) {
    this.about = about;
    this.threads = ort.env.wasm.numThreads ?? 1;
    this.ort = ort;
    this.encoder = encoder;
    this.decoder = decoder;
    const side = about.image_size / 4;
    this.noMask = new Float32Array(side * side);
    /** @type {import("onnxruntime-web").Tensor | null} */
    this.embedding = null;
  }

  /**
   * Fetch the files and start the runtime.
   * @param {About} about
   * @param {Backend} backend
   * @param {string} base address that paths are relative to
   * @param {(share: number) => void} progress of the download
   * @throws {Error} if a file is not there or damaged, the runtime does not start, or it computes something else
   */
  static async open(about, backend, base, progress) {
    if (backend === "webgpu" && !(await hasAdapter())) throw new Error("no graphics adapter");
    const total = about.encoder.bytes + about.decoder.bytes;
    let done = 0;
    const count = (/** @type {number} */ bytes) => progress(Math.min(1, (done += bytes) / total));
    const [encoder, decoder] = await Promise.all([about.encoder, about.decoder].map((e) => load(e, base, count)));
    /** @type {Runtime} */
    const ort = await import(new URL(BUNDLES[backend], base).href);
    ort.env.logLevel = "error";
    const cores = Math.min(navigator.hardwareConcurrency, MOST_THREADS);
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? cores : 1;
    const options = { executionProviders: [backend], logSeverityLevel: /** @type {const} */ (3) };
    const start = (/** @type {Uint8Array} */ bytes) => ort.InferenceSession.create(bytes, options);
    const model = new Model(ort, about, await start(encoder), await start(decoder));
    if (backend === "webgpu") await model.selfTest();
    return model;
  }

  /**
   * Look at a photo, once for all prompts on it.
   * @param {Pixels} photo RGBA
   */
  async encode(photo) {
    const { image_size: side, mean, std } = this.about;
    const images = new this.ort.Tensor("float32", preprocess(photo, side, mean, std), [1, 3, side, side]);
    this.embedding = (await this.encoder.run({ images })).image_embeddings;
  }

  /**
   * Masks for prompts of as many points each; one that has a mask is alone.
   * @param {Packed[]} prompts
   * @returns {Promise<Decoded[]>}
   */
  async decode(prompts) {
    if (this.embedding === null) throw new Error("No photo is encoded.");
    const [count, { count: points, mask }] = [prompts.length, prompts[0]];
    const { Tensor } = this.ort;
    const side = this.about.image_size / 4;
    const coords = new Float32Array(count * points * 2);
    const labels = new Float32Array(count * points);
    prompts.forEach((prompt, i) => {
      coords.set(prompt.coords, i * points * 2);
      labels.set(prompt.labels, i * points);
    });
    const found = await this.decoder.run({
      image_embeddings: this.embedding,
      point_coords: new Tensor("float32", coords, [count, points, 2]),
      point_labels: new Tensor("float32", labels, [count, points]),
      mask_input: new Tensor("float32", mask ?? this.noMask, [1, 1, side, side]),
      has_mask_input: new Tensor("float32", Float32Array.of(mask ? 1 : 0), [1]),
    });
    const masks = /** @type {Float32Array} */ (found.low_res_masks.data);
    const iou = /** @type {Float32Array} */ (found.iou_predictions.data);
    const pixels = masks.length / (count * 4);
    return prompts.map((_, i) => ({
      masks: [0, 1, 2, 3].map((m) => masks.slice((i * 4 + m) * pixels, (i * 4 + m + 1) * pixels)),
      iou: iou.slice(i * 4, i * 4 + 4),
    }));
  }

  /**
   * Compare a mask with ONNX Runtime's on a processor, which `model.json` has: graphics drivers differ.
   * @throws {Error} if they are not the same
   */
  async selfTest() {
    const { image_size: side, self_test: expected, mask_threshold: threshold } = this.about;
    await this.encode(testPicture(side));
    /** @type {Prompt} */
    const prompt = { points: [{ x: side / 2, y: side / 2, label: 1 }], box: null };
    const [{ masks }] = await this.decode([packPrompt(prompt, { width: side, height: side }, side)]);
    this.embedding = null;
    const mask = masks[expected.mask];
    let [at, wrong, inside] = [0, 0, false];
    for (const count of expected.counts) {
      for (const end = at + count; at < end; at++) wrong += mask[at] > threshold === inside ? 0 : 1;
      inside = !inside;
    }
    const isRight = at === mask.length && wrong <= TOLERANCE * mask.length;
    if (!isRight) throw new Error("the graphics processor computes masks wrongly");
  }
}

/**
 * Number of the mask that answers a prompt best, of the four.
 * @param {ArrayLike<number>} iou
 * @param {Prompt} prompt
 */
export function best(iou, prompt) {
  if (!isAmbiguous(prompt)) return 0;
  return [1, 2, 3].reduce((a, b) => (iou[b] > iou[a] ? b : a));
}

/**
 * A disc on a slope of brightness, in whole numbers, as the export draws it.
 * @param {number} side
 * @returns {Pixels}
 */
export function testPicture(side) {
  const data = new Uint8Array(side * side * 4);
  for (let y = 0, at = 0; y < side; y++) {
    for (let x = 0; x < side; x++, at += 4) {
      const inside = (2 * x - side) ** 2 + (2 * y - side) ** 2 < (side / 2) ** 2;
      const slope = Math.floor((x * 128) / side);
      data.set(inside ? [220, 120, 40, 255] : [slope, slope, Math.floor((y * 128) / side), 255], at);
    }
  }
  return { width: side, height: side, data };
}

/** Whether there is a graphics processor, and not one that software pretends to be, which takes minutes. */
async function hasAdapter() {
  /** @typedef {{info?: {isFallbackAdapter?: boolean}} | null} Adapter */
  const { gpu } = /** @type {{gpu?: {requestAdapter(): Promise<Adapter>}}} */ (navigator);
  const adapter = await gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter && !adapter.info?.isFallbackAdapter);
}

/**
 * The bytes of a file, checked.
 * @param {Entry} entry
 * @param {string} base
 * @param {(bytes: number) => void} count is told how many more have come
 */
async function load(entry, base, count) {
  // The digest in the address: after another export nothing old comes out of a cache.
  const response = await fetch(new URL(`${entry.path}?${entry.sha256.slice(0, 8)}`, base));
  if (!response.ok || response.body === null) throw new Error(`${entry.path} could not be loaded (${response.status})`);
  const bytes = new Uint8Array(entry.bytes);
  let at = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > entry.bytes) throw new Error(`${entry.path} is not the file that was exported`);
    bytes.set(value, at);
    at += value.length;
    count(value.length);
  }
  const digest = globalThis.crypto.subtle ? hex(await crypto.subtle.digest("SHA-256", bytes)) : entry.sha256;
  if (at !== entry.bytes || digest !== entry.sha256) throw new Error(`${entry.path} is not the file that was exported`);
  return bytes;
}

/** @param {ArrayBuffer} buffer */
function hex(buffer) {
  return Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
