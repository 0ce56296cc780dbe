/**
 * Masks: from the decoder's logits to pixels, measured, filtered, and in COCO's form.
 *
 * The procedures are those of `repvit_sam_jax/inference/masks.py` and `rle.py`.
 */

/**
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {Size & {left: number, top: number, values: Float32Array}} Part logits of a rectangle of the picture
 * @typedef {{x1: number, y1: number, x2: number, y2: number}} Extent first and last pixels of a mask
 * @typedef {{starts: Int32Array, weights: Float32Array, stride: number, count: number}} Band a matrix,
 *   of whose rows few weights are not 0
 */

import { resizedSize } from "./geometry.js";

/**
 * Bilinear taps without aligned corners, in float32 as PyTorch has them.
 * @param {number} size
 * @param {number} newSize
 */
function taps(size, newSize) {
  const scale = Math.fround(Math.fround(size) / Math.fround(newSize));
  return Array.from({ length: newSize }, (_, i) => {
    const position = Math.fround(Math.max(scale * (i + 0.5) - 0.5, 0));
    const low = Math.min(Math.trunc(position), size - 1);
    return { low, high: Math.min(low + 1, size - 1), weight: Math.fround(position - low) };
  });
}

/**
 * From `lowRes` values to `square`, of which the first `part` become `whole`, as one narrow matrix.
 * @param {number} lowRes
 * @param {number} square
 * @param {number} part
 * @param {number} whole
 * @returns {Band}
 */
function compose(lowRes, square, part, whole) {
  const outer = taps(lowRes, square);
  const inner = taps(part, whole);
  const stride = 4;
  const starts = new Int32Array(whole);
  const weights = new Float32Array(whole * stride);
  const row = new Float64Array(stride);
  inner.forEach(({ low, high, weight }, i) => {
    const start = Math.min(outer[low].low, lowRes - 1);
    row.fill(0);
    for (const [at, share] of /** @type {[number, number][]} */ ([[low, 1 - weight], [high, weight]])) {
      if (share === 0) continue;
      row[outer[at].low - start] += share * (1 - outer[at].weight);
      row[outer[at].high - start] += share * outer[at].weight;
    }
    starts[i] = start;
    weights.set(row, i * stride);
  });
  return { starts, weights, stride, count: whole };
}

/** Upscales logits of the decoder to a picture of one size. */
export class Upscaler {
  /**
   * @param {Size} photo in pixels
   * @param {number} imageSize S
   * @param {number} lowRes S/4
   * @param {Size} [picture] what the masks are for, of the photo's shape; the photo if not given
   */
  constructor(photo, imageSize, lowRes, picture = photo) {
    const resized = resizedSize(photo, imageSize);
    this.size = picture;
    this.lowRes = lowRes;
    this.columns = compose(lowRes, imageSize, resized.width, picture.width);
    this.rows = compose(lowRes, imageSize, resized.height, picture.height);
  }

  /**
   * Logits of the part of the picture in which any can exceed `least`; what lies outside does not.
   * @param {Float32Array} logits [S/4, S/4]
   * @param {number} least
   * @returns {Part}
   */
  part(logits, least) {
    const n = this.lowRes;
    const seen = bounds(n, n, (at) => logits[at] > least);
    const [left, right] = seen === null ? [0, 0] : reach(this.columns, seen.x1, seen.x2);
    const [top, bottom] = seen === null ? [0, 0] : reach(this.rows, seen.y1, seen.y2);
    const [width, height] = [right - left, bottom - top];
    const values = new Float32Array(width * height);
    const line = new Float32Array(n);
    for (let y = 0; y < height; y++) {
      combine(this.rows, top + y, logits, n, line);
      const { starts, weights } = this.columns;
      for (let x = 0, at = y * width; x < width; x++, at++) {
        const [from, w] = [starts[left + x], (left + x) * 4];
        // Weights past the last value are 0, and so is what is read there.
        values[at] =
          weights[w] * line[from] +
          weights[w + 1] * (line[from + 1] || 0) +
          weights[w + 2] * (line[from + 2] || 0) +
          weights[w + 3] * (line[from + 3] || 0);
      }
    }
    return { left, top, width, height, values };
  }

  /**
   * The mask at the picture's size, a byte a pixel: 1 inside, 0 outside.
   * @param {Float32Array} logits
   * @param {number} threshold
   * @returns {Uint8Array}
   */
  mask(logits, threshold) {
    const { left, top, width, height, values } = this.part(logits, threshold);
    const out = new Uint8Array(this.size.width * this.size.height);
    for (let y = 0; y < height; y++) {
      const to = (top + y) * this.size.width + left;
      for (let x = 0; x < width; x++) out[to + x] = values[y * width + x] > threshold ? 1 : 0;
    }
    return out;
  }
}

/**
 * Row `number` of the picture before its columns are made.
 * @param {Band} band
 * @param {number} number
 * @param {Float32Array} logits
 * @param {number} n values a row
 * @param {Float32Array} line the result
 */
function combine(band, number, logits, n, line) {
  line.fill(0);
  for (let k = 0; k < band.stride; k++) {
    const weight = band.weights[number * band.stride + k];
    if (weight === 0) continue;
    const from = (band.starts[number] + k) * n;
    for (let x = 0; x < n; x++) line[x] += weight * logits[from + x];
  }
}

/**
 * Numbers of the first pixel and past the last one that see a value from `first` to `last`.
 * @param {Band} band
 * @param {number} first
 * @param {number} last
 * @returns {[number, number]}
 */
function reach(band, first, last) {
  let [low, high] = [0, band.count];
  while (low < high && band.starts[low] + band.stride - 1 < first) low++;
  while (high > low && band.starts[high - 1] > last) high--;
  return [low, high];
}

/**
 * First and last column and row of what is inside; null if nothing is.
 * @param {number} width
 * @param {number} height
 * @param {(at: number) => boolean} isInside
 * @returns {Extent | null}
 */
export function bounds(width, height, isInside) {
  let [x1, y1, x2, y2] = [width, -1, -1, -1];
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!isInside(at)) continue;
      if (y1 < 0) y1 = y;
      y2 = y;
      if (x < x1) x1 = x;
      if (x > x2) x2 = x;
    }
  }
  return y1 < 0 ? null : { x1, y1, x2, y2 };
}

/**
 * Extent and area of a mask, and its stability: how much of it stays when the threshold goes up and down by `offset`.
 * @param {Part} part of logits over `threshold - offset`
 * @param {number} threshold
 * @param {number} offset
 * @returns {{extent: Extent, area: number, stability: number} | null} null for an empty mask
 */
export function measure(part, threshold, offset) {
  const { values, width, height } = part;
  let [above, below, area] = [0, 0, 0];
  for (const value of values) {
    if (value > threshold + offset) above++;
    if (value > threshold - offset) below++;
    if (value > threshold) area++;
  }
  const seen = bounds(width, height, (at) => values[at] > threshold);
  if (seen === null) return null;
  const { x1, y1, x2, y2 } = seen;
  const extent = { x1: x1 + part.left, y1: y1 + part.top, x2: x2 + part.left, y2: y2 + part.top };
  return { extent, area, stability: Math.fround(above / below) };
}

/**
 * Numbers of the boxes that overlap no better one by more than `threshold`, best first; ties keep their order.
 * @param {Extent[]} boxes
 * @param {number[]} scores
 * @param {number} threshold
 * @returns {number[]}
 */
export function nms(boxes, scores, threshold) {
  const area = (/** @type {Extent} */ box) => (box.x2 - box.x1) * (box.y2 - box.y1);
  const order = boxes.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
  /** @type {number[]} */
  const kept = [];
  for (const i of order) {
    const overlaps = kept.some((j) => {
      const width = Math.min(boxes[i].x2, boxes[j].x2) - Math.max(boxes[i].x1, boxes[j].x1);
      const height = Math.min(boxes[i].y2, boxes[j].y2) - Math.max(boxes[i].y1, boxes[j].y1);
      const overlap = Math.max(width, 0) * Math.max(height, 0);
      return Math.fround(overlap / (area(boxes[j]) + area(boxes[i]) - overlap)) > threshold;
    });
    if (!overlaps) kept.push(i);
  }
  return kept;
}

/**
 * Lengths of runs, column by column, outside and inside in turn, beginning with outside.
 * @param {Uint8Array} mask
 * @param {Size} size
 * @returns {number[]}
 */
export function toCounts(mask, size) {
  const counts = [];
  let [inside, length] = [0, 0];
  for (let x = 0; x < size.width; x++) {
    for (let y = 0, at = x; y < size.height; y++, at += size.width) {
      if (mask[at] !== inside) {
        counts.push(length);
        [inside, length] = [mask[at], 0];
      }
      length++;
    }
  }
  counts.push(length);
  return counts;
}

/**
 * COCO's text of lengths of runs: five bits a character, from the fourth number on differences to the one before the
 * last (cocodataset/cocoapi, `rleToString`).
 * @param {number[]} counts
 * @returns {string}
 */
export function compress(counts) {
  let text = "";
  counts.forEach((count, i) => {
    let rest = i > 2 ? count - counts[i - 2] : count;
    for (let more = true; more; ) {
      const bits = rest & 31;
      rest >>= 5;
      more = bits & 16 ? rest !== -1 : rest !== 0;
      text += String.fromCharCode(48 + bits + (more ? 32 : 0));
    }
  });
  return text;
}

/**
 * A mask as COCO's compressed RLE.
 * @param {Uint8Array} mask
 * @param {Size} size
 */
export function toRle(mask, size) {
  return { size: [size.height, size.width], counts: compress(toCounts(mask, size)) };
}
