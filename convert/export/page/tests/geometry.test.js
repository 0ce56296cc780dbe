import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import * as geometry from "../site/geometry.js";

const golden = JSON.parse(readFileSync(new URL("golden.json", import.meta.url), "utf8"));

/** @param {number[][][]} rows pixels [height][width][channels], with `alpha` added if it is a number */
function toPixels(rows, alpha = /** @type {number | null} */ (null)) {
  const data = Uint8Array.from(rows.flat().flatMap((pixel) => (alpha === null ? pixel : [...pixel, alpha])));
  return { height: rows.length, width: rows[0].length, data };
}

test("sizes and points of the model's frame are Python's", () => {
  for (const { photo, image_size, resized, point, in_frame } of golden.sizes) {
    const size = { height: photo[0], width: photo[1] };
    const { width, height } = geometry.resizedSize(size, image_size);
    assert.deepEqual([height, width], resized);
    const found = geometry.toFrame({ x: point[0], y: point[1] }, size, image_size);
    assert.deepEqual(found.map(Math.fround), in_frame);
  }
});

test("photos are resized as Pillow does, to the last bit", () => {
  for (const { pixels, resized } of golden.resized) {
    const expected = toPixels(resized);
    const rgb = geometry.resizeBilinear(toPixels(pixels), expected, 3, 3);
    assert.deepEqual(rgb, expected);
    const fromRgba = geometry.resizeBilinear(toPixels(pixels, 7), expected, 4, 3);
    assert.deepEqual(fromRgba, expected);
  }
});

test("what the encoder takes is Python's, to the last bit", () => {
  const { pixels, image_size, mean, std, values } = golden.preprocessed;
  const found = geometry.preprocess(toPixels(pixels, 255), image_size, mean, std);
  assert.deepEqual([...found], values.flat(2));
});

test("photos that are too large or too narrow are refused", () => {
  geometry.checkPhoto({ width: 8000, height: 6000 }, 512);
  const tooLarge = { width: 9000, height: 6000 };
  assert.throws(() => geometry.checkPhoto(tooLarge, 512), /9000 x 6000 pixels; at most 50 million/);
  geometry.checkPhoto({ width: 1, height: 32 }, 16);
  assert.throws(() => geometry.checkPhoto({ width: 1, height: 100 }, 16), /too narrow for the model, 1 x 100/);
});

test("a prompt without a box ends with a point that is none", () => {
  const size = { width: 100, height: 50 };
  const point = /** @type {const} */ ({ x: 50, y: 10, label: 1 });
  const packed = geometry.packPrompt({ points: [point], box: null }, size, 200);
  assert.deepEqual([...packed.coords], [100, 20, 0, 0]);
  assert.deepEqual([...packed.labels], [1, -1]);
  const box = { x1: 1, y1: 2, x2: 3, y2: 4 };
  const both = geometry.packPrompt({ points: [{ ...point, label: 0 }], box }, size, 200);
  assert.deepEqual([...both.coords], [100, 20, 2, 4, 6, 8]);
  assert.deepEqual([...both.labels], [0, 2, 3]);
  assert.equal(both.count, 3);
  assert.ok(geometry.isAmbiguous({ points: [point], box: null }));
  assert.ok(!geometry.isAmbiguous({ points: [point], box }));
  assert.ok(!geometry.isAmbiguous({ points: [point], box: null, mask: new Float32Array(4) }));
});

test("pointers become points of the photo and stay within it", () => {
  const size = { width: 400, height: 200 };
  const bounds = { left: 10, top: 20, width: 100, height: 50 };
  const at = geometry.toPhoto({ clientX: 60, clientY: 30 }, bounds, size);
  assert.deepEqual(at, { x: 200, y: 40 });
  const outside = geometry.toPhoto({ clientX: 500, clientY: 0 }, bounds, size);
  assert.deepEqual(geometry.boxBetween(outside, at, size), { x1: 200, y1: 0, x2: 400, y2: 40 });
  assert.deepEqual(geometry.fitWithin(size, 100), { width: 100, height: 50 });
  assert.deepEqual(geometry.fitWithin(size, 1000), size);
});
