import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { findEverything, grid } from "../site/everything.js";
import * as masks from "../site/masks.js";
import { drawMask } from "../site/overlay.js";
import { toPolygons } from "../site/polygons.js";

const golden = JSON.parse(readFileSync(new URL("golden.json", import.meta.url), "utf8"));
const toSize = (/** @type {number[]} */ [height, width]) => ({ height, width });

test("logits are upscaled as in Python", () => {
  for (const { photo, logits, upscaled, counts, extent, stability } of golden.upscaled) {
    const size = toSize(photo);
    const upscaler = new masks.Upscaler(size, 32, 8);
    const given = Float32Array.from(logits.flat());
    const whole = upscaler.part(given, -Infinity);
    assert.deepEqual([whole.left, whole.top, whole.width, whole.height], [0, 0, size.width, size.height]);
    whole.values.forEach((value, i) => assert.ok(Math.abs(value - upscaled.flat()[i]) < 1e-4));
    assert.deepEqual(masks.toCounts(upscaler.mask(given, 0), size), counts);
    const figures = masks.measure(upscaler.part(given, -1), 0, 1);
    assert.ok(figures);
    const { x1, y1, x2, y2 } = figures.extent;
    assert.deepEqual([x1, y1, x2, y2], extent);
    assert.equal(figures.stability, stability);
    assert.equal(figures.area, upscaler.mask(given, 0).reduce((sum, inside) => sum + inside));
  }
});

test("a mask of nothing is empty", () => {
  const upscaler = new masks.Upscaler({ width: 20, height: 10 }, 32, 8);
  const nothing = new Float32Array(64).fill(-5);
  assert.deepEqual(masks.toCounts(upscaler.mask(nothing, 0), { width: 20, height: 10 }), [200]);
  assert.equal(masks.measure(upscaler.part(nothing, -1), 0, 1), null);
});

test("runs and their text are COCO's", () => {
  for (const { mask, counts, coco } of golden.runs) {
    const flat = Uint8Array.from(mask.flat());
    const size = { width: mask[0].length, height: mask.length };
    assert.deepEqual(masks.toCounts(flat, size), counts);
    assert.deepEqual(masks.toRle(flat, size), coco);
  }
});

test("outlines are Python's", () => {
  for (const { mask, polygons } of golden.runs) {
    const size = { width: mask[0].length, height: mask.length };
    assert.deepEqual(toPolygons(Uint8Array.from(mask.flat()), size), polygons);
  }
});

test("duplicates are dropped as in Python", () => {
  const boxes = golden.nms.boxes.map((/** @type {number[]} */ [x1, y1, x2, y2]) => ({ x1, y1, x2, y2 }));
  assert.deepEqual(masks.nms(boxes, golden.nms.scores, 0.5), golden.nms.kept);
});

test("a mask is tinted inside, and outlined at its edge", () => {
  const [width, height] = [20, 4];
  const values = Float32Array.from({ length: width * height }, (_, i) => (i % width) - 9.5);
  const picture = /** @type {ImageData} */ ({ width, height, data: new Uint8ClampedArray(width * height * 4) });
  const style = { threshold: 0, tint: [0, 0, 255], line: [255, 255, 255], opacity: 0.5, width: 2 };
  drawMask(picture, { left: 0, top: 0, width, height, values }, style);
  const pixel = (/** @type {number} */ x) => [...picture.data.slice((width + x) * 4, (width + x) * 4 + 4)];
  assert.deepEqual(pixel(3), [0, 0, 0, 0]);
  assert.deepEqual(pixel(16), [0, 0, 255, 128]);
  assert.deepEqual(pixel(9), [255, 255, 255, 255]);
  assert.deepEqual(pixel(10), [255, 255, 255, 255]);
});

test("everything: filters, progress, and an end when it is asked for", async () => {
  const size = { width: 32, height: 32 };
  const disc = (/** @type {number} */ radius) =>
    Float32Array.from({ length: 64 }, (_, i) => 9 * (radius - Math.hypot((i % 8) - 4, (i >> 3) - 4)));
  const generator = { pred_iou_thresh: 0.5, stability_score_thresh: 0.5, stability_score_offset: 1 };
  const about = { image_size: 32, mask_threshold: 0, generator };
  const decoded = { masks: [disc(3), disc(1.5), disc(3), disc(2.2)], iou: Float32Array.of(1, 0.7, 0.9, 0.4) };
  let asked = 0;
  const decode = async (/** @type {unknown[]} */ prompts) => {
    asked += prompts.length;
    return prompts.map(() => decoded);
  };
  const model = /** @type {any} */ ({ about, decode });
  /** @type {number[]} */
  const shares = [];
  const found = await findEverything(model, size, size, 5, (share) => shares.push(share) > 0);
  assert.deepEqual(shares, [16 / 25, 1]);
  assert.equal(asked, 25);
  assert.deepEqual(found.map((one) => Math.round(one.iou * 10)), [9, 7]);
  await findEverything(model, size, size, 5, () => false);
  assert.equal(asked, 25 + 16);
  const points = grid(2, { width: 8, height: 4 }).map((prompt) => prompt.points[0]);
  assert.deepEqual(points.map(({ x, y }) => [x, y]), [[2, 1], [6, 1], [2, 3], [6, 3]]);
});
