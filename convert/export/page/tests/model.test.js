import assert from "node:assert/strict";
import test from "node:test";

import { best, Model, testPicture } from "../site/model.js";

const SIDE = 32;

/** A runtime whose decoder gives these logits as its third mask. @param {Float32Array} logits */
function withMask(logits) {
  class Tensor {
    /** @param {string} type @param {Float32Array} data @param {number[]} dims */
    constructor(type, data, dims) {
      Object.assign(this, { type, data, dims });
    }
  }
  const masks = new Float32Array(4 * logits.length);
  masks.set(logits, 2 * logits.length);
  const encoder = { run: async () => ({ image_embeddings: {} }) };
  const answer = { low_res_masks: { data: masks }, iou_predictions: { data: new Float32Array(4) } };
  const decoder = { run: async () => answer };
  const half = (SIDE / 4) ** 2 / 2;
  const self_test = { mask: 2, counts: [half, half] };
  const about = { image_size: SIDE, mask_threshold: 0, mean: [0, 0, 0], std: [1, 1, 1], self_test };
  const ort = { Tensor, env: { wasm: { numThreads: 1 } } };
  const [runtime, ...rest] = /** @type {any[]} */ ([ort, about, encoder, decoder]);
  return new Model(runtime, rest[0], rest[1], rest[2]);
}

test("a processor that computes masks otherwise is found out", async () => {
  const right = Float32Array.from({ length: 64 }, (_, i) => (i < 32 ? -1 : 1));
  await withMask(right).selfTest();
  const [opposite, nothing] = [right.map((value) => -value), right.map(() => NaN)];
  for (const wrong of [opposite, nothing, Float32Array.from(right, (value, i) => (i === 0 ? 1 : value))]) {
    await assert.rejects(withMask(wrong).selfTest(), /wrongly/);
  }
});

test("a mask goes into the decoder with its prompt", async () => {
  const model = withMask(new Float32Array(64));
  /** @type {any[]} */
  const asked = [];
  const { run } = model.decoder;
  model.decoder.run = (/** @type {any} */ feeds) => {
    asked.push([feeds.mask_input.data, feeds.has_mask_input.data]);
    return run(feeds);
  };
  await model.encode(testPicture(SIDE));
  const prompt = { coords: Float32Array.of(1, 1), labels: Float32Array.of(1), count: 1 };
  const mask = Float32Array.from({ length: 64 }, (_, i) => i);
  await model.decode([{ ...prompt, mask }]);
  await model.decode([prompt]);
  assert.deepEqual(asked, [[mask, Float32Array.of(1)], [new Float32Array(64), Float32Array.of(0)]]);
});

test("no photo, no masks", async () => {
  await assert.rejects(withMask(new Float32Array(64)).decode([]), /No photo/);
});

test("the picture of the test is a disc", () => {
  const { data, width } = testPicture(SIDE);
  const pixel = (/** @type {number} */ x, /** @type {number} */ y) => {
    const at = (y * width + x) * 4;
    return [...data.slice(at, at + 4)];
  };
  assert.deepEqual(pixel(16, 16), [220, 120, 40, 255]);
  assert.deepEqual(pixel(31, 5), [124, 124, 20, 255]);
});

test("a single point takes the surest of three masks, other prompts the first one", () => {
  const point = /** @type {const} */ ({ x: 1, y: 1, label: 1 });
  assert.equal(best([0.9, 0.1, 0.3, 0.2], { points: [point], box: null }), 2);
  assert.equal(best([0.1, 0.1, 0.3, 0.2], { points: [point, point], box: null }), 0);
});
