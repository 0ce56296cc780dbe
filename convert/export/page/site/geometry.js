/**
 * Frames: pixels of the photo, the square that the model sees, and pixels of the screen.
 *
 * A photo is scaled until its longer side has S pixels, as Pillow scales it (bilinear, antialiased, 8 bits), and padded
 * at the bottom and right. All arithmetic follows `repvit_sam_jax/transforms.py`, rounding included.
 */

/**
 * @typedef {{width: number, height: number}} Size in pixels
 * @typedef {{x: number, y: number}} Point
 * @typedef {{x1: number, y1: number, x2: number, y2: number}} Box corners, in pixels of the photo
 * @typedef {Point & {label: 0 | 1}} LabelledPoint 1 is foreground, 0 background; in pixels of the photo
 * @typedef {{points: LabelledPoint[], box: Box | null, mask?: Float32Array}} Prompt `mask` is logits [S/4, S/4] of one
 *   that is to be refined
 * @typedef {Size & {data: Uint8Array | Uint8ClampedArray}} Pixels with `channels` values each, row by row
 */

/** Labels of the decoder beside 0 and 1. */
const NOT_A_POINT = -1;
const TOP_LEFT = 2;
const BOTTOM_RIGHT = 3;
/** Pixels of a photo that memory is sure to suffice for, on phones too. */
const MOST_PIXELS = 50e6;

/**
 * @param {Size} size of a photo
 * @param {number} imageSize
 * @throws {RangeError} if it is too large, or so narrow that nothing of its short side would be left
 */
export function checkPhoto(size, imageSize) {
  const { width, height } = size;
  if (width * height > MOST_PIXELS) {
    throw new RangeError(`The photo has ${width} x ${height} pixels; at most ${MOST_PIXELS / 1e6} million are possible.`);
  }
  const resized = resizedSize(size, imageSize);
  if (Math.min(resized.width, resized.height) < 1) {
    throw new RangeError(`The photo is too narrow for the model, ${width} x ${height} pixels.`);
  }
}

/**
 * Size after the longer side is scaled to `imageSize`; halves round up.
 * @param {Size} size of the photo
 * @param {number} imageSize
 * @returns {Size}
 */
export function resizedSize(size, imageSize) {
  const scale = imageSize / Math.max(size.width, size.height);
  return { width: Math.trunc(size.width * scale + 0.5), height: Math.trunc(size.height * scale + 0.5) };
}

/**
 * A point of the photo in the frame of the model.
 * @param {Point} point
 * @param {Size} size of the photo
 * @param {number} imageSize
 * @returns {[number, number]} (x, y)
 */
export function toFrame(point, size, imageSize) {
  const resized = resizedSize(size, imageSize);
  return [point.x * (resized.width / size.width), point.y * (resized.height / size.height)];
}

/**
 * Whether a prompt means one of several things: a single point, and no mask.
 * @param {Prompt} prompt
 */
export function isAmbiguous(prompt) {
  return prompt.points.length === 1 && prompt.box === null && prompt.mask === undefined;
}

/**
 * A prompt as the decoder takes it: points, then the corners of the box or, without one, a point that is none.
 * @param {Prompt} prompt
 * @param {Size} size of the photo
 * @param {number} imageSize
 * @returns {{coords: Float32Array, labels: Float32Array, count: number, mask?: Float32Array}}
 */
export function packPrompt(prompt, size, imageSize) {
  /** @type {number[]} */
  const labels = prompt.points.map((point) => point.label);
  const coords = prompt.points.flatMap((point) => toFrame(point, size, imageSize));
  if (prompt.box === null) {
    coords.push(0, 0);
    labels.push(NOT_A_POINT);
  } else {
    const { x1, y1, x2, y2 } = prompt.box;
    coords.push(...toFrame({ x: x1, y: y1 }, size, imageSize), ...toFrame({ x: x2, y: y2 }, size, imageSize));
    labels.push(TOP_LEFT, BOTTOM_RIGHT);
  }
  const [count, { mask }] = [labels.length, prompt];
  return { coords: Float32Array.from(coords), labels: Float32Array.from(labels), count, mask };
}

/**
 * The box between two corners, whichever they are, within the photo.
 * @param {Point} a
 * @param {Point} b
 * @param {Size} size
 * @returns {Box}
 */
export function boxBetween(a, b, size) {
  const [p, q] = [clampToPhoto(a, size), clampToPhoto(b, size)];
  return { x1: Math.min(p.x, q.x), y1: Math.min(p.y, q.y), x2: Math.max(p.x, q.x), y2: Math.max(p.y, q.y) };
}

/**
 * @param {Point} point
 * @param {Size} size
 * @returns {Point}
 */
export function clampToPhoto(point, size) {
  return { x: Math.min(Math.max(point.x, 0), size.width), y: Math.min(Math.max(point.y, 0), size.height) };
}

/**
 * Where on the photo a pointer is.
 * @param {{clientX: number, clientY: number}} event
 * @param {{left: number, top: number, width: number, height: number}} bounds of the picture on the screen
 * @param {Size} size of the photo
 * @returns {Point}
 */
export function toPhoto(event, bounds, size) {
  return {
    x: ((event.clientX - bounds.left) / bounds.width) * size.width,
    y: ((event.clientY - bounds.top) / bounds.height) * size.height,
  };
}

/**
 * The largest size of the same shape of at most `longest` pixels a side; the size itself if it fits.
 * @param {Size} size
 * @param {number} longest
 * @returns {Size}
 */
export function fitWithin(size, longest) {
  const scale = Math.min(1, longest / Math.max(size.width, size.height));
  const side = (/** @type {number} */ pixels) => Math.max(1, Math.round(pixels * scale));
  return { width: side(size.width), height: side(size.height) };
}

const PRECISION = 22;

/**
 * Fixed-point weights of Pillow's triangle filter along an axis.
 * @param {number} size
 * @param {number} newSize
 * @returns {{starts: Int32Array, lengths: Int32Array, weights: Int32Array, stride: number}}
 */
function filterWeights(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  const stride = Math.ceil(support) * 2 + 1;
  const [starts, lengths] = [new Int32Array(newSize), new Int32Array(newSize)];
  const weights = new Int32Array(newSize * stride);
  const raw = new Float64Array(stride);
  for (let i = 0; i < newSize; i++) {
    const centre = (i + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - support + 0.5), 0);
    const length = Math.min(Math.trunc(centre + support + 0.5), size) - start;
    let sum = 0;
    for (let k = 0; k < length; k++) {
      raw[k] = Math.max(1 - Math.abs((k + start - centre + 0.5) * (1 / support)), 0);
      sum += raw[k];
    }
    for (let k = 0; k < length; k++) {
      weights[i * stride + k] = Math.trunc(0.5 + (raw[k] / sum) * (1 << PRECISION));
    }
    starts[i] = start;
    lengths[i] = length;
  }
  return { starts, lengths, weights, stride };
}

/**
 * Scale an image as Pillow does with `Resampling.BILINEAR`, to the last bit.
 * @param {Pixels} image
 * @param {Size} size
 * @param {number} channels that a pixel has
 * @param {number} used of them, the first ones, which alone are in the result
 * @returns {Pixels}
 */
export function resizeBilinear(image, size, channels, used) {
  const wide = resizeRows(image, size.width, channels, used);
  return resizeColumns(wide, size.height, used);
}

/**
 * @param {Pixels} image
 * @param {number} width
 * @param {number} channels
 * @param {number} used
 * @returns {Pixels}
 */
function resizeRows(image, width, channels, used) {
  const { height, data } = image;
  const out = new Uint8Array(width * height * used);
  const { starts, lengths, weights, stride } = filterWeights(image.width, width);
  const isCopy = width === image.width;
  for (let y = 0, at = 0; y < height; y++) {
    const row = y * image.width * channels;
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < used; c++, at++) {
        if (isCopy) {
          out[at] = data[row + x * channels + c];
          continue;
        }
        let sum = 1 << (PRECISION - 1);
        for (let k = 0, from = row + starts[x] * channels + c; k < lengths[x]; k++, from += channels) {
          sum += data[from] * weights[x * stride + k];
        }
        out[at] = Math.min(sum >> PRECISION, 255);
      }
    }
  }
  return { width, height, data: out };
}

/**
 * @param {Pixels} image
 * @param {number} height
 * @param {number} channels
 * @returns {Pixels}
 */
function resizeColumns(image, height, channels) {
  if (height === image.height) return image;
  const row = image.width * channels;
  const out = new Uint8Array(row * height);
  const { starts, lengths, weights, stride } = filterWeights(image.height, height);
  const sums = new Int32Array(row);
  for (let y = 0; y < height; y++) {
    sums.fill(1 << (PRECISION - 1));
    for (let k = 0; k < lengths[y]; k++) {
      const weight = weights[y * stride + k];
      for (let i = 0, from = (starts[y] + k) * row; i < row; i++, from++) sums[i] += image.data[from] * weight;
    }
    for (let i = 0; i < row; i++) out[y * row + i] = Math.min(sums[i] >> PRECISION, 255);
  }
  return { width: image.width, height, data: out };
}

/**
 * What the encoder takes: channels first, [3, S, S], normalised, then padded with zeros.
 * @param {Pixels} image RGBA
 * @param {number} imageSize
 * @param {readonly number[]} mean of each channel
 * @param {readonly number[]} std
 * @returns {Float32Array}
 */
export function preprocess(image, imageSize, mean, std) {
  const size = resizedSize(image, imageSize);
  const resized = resizeBilinear(image, size, 4, 3);
  const out = new Float32Array(3 * imageSize * imageSize);
  const table = new Float32Array(256);
  for (let c = 0; c < 3; c++) {
    const [shift, scale] = [Math.fround(mean[c]), Math.fround(std[c])];
    for (let value = 0; value < 256; value++) table[value] = Math.fround(value - shift) / scale;
    for (let y = 0; y < size.height; y++) {
      const to = (c * imageSize + y) * imageSize;
      for (let x = 0; x < size.width; x++) out[to + x] = table[resized.data[(y * size.width + x) * 3 + c]];
    }
  }
  return out;
}
