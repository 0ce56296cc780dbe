/** Outlines of masks as polygons: the procedure of `repvit_sam_jax/inference/polygons.py`. */

/**
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {Size & {data: Uint8Array, x: number, y: number}} Part pixels, and where the first one is in the photo
 */

/** Right, down, left, up. */
const WAYS = [[1, 0], [0, 1], [-1, 0], [0, -1]];
/** From a corner to the pixels ahead of it, left and right of each way. */
const AHEAD = [[[0, -1], [0, 0]], [[0, 0], [-1, 0]], [[-1, 0], [-1, -1]], [[-1, -1], [0, -1]]];
const NEIGHBOURS = [[1, 0], [-1, 0], [0, 1], [0, -1]];
const ALL_NEIGHBOURS = [...NEIGHBOURS, [1, 1], [1, -1], [-1, 1], [-1, -1]];

/**
 * COCO's polygons of a mask, along the edges of its pixels. A part with holes is cut through them into parts without.
 * @param {Uint8Array} mask 1 inside, 0 outside
 * @param {Size} size
 * @returns {number[][]} [x, y, x, y, ...], the one of most corners first
 */
export function toPolygons(mask, size) {
  const whole = { ...size, data: mask, x: 0, y: 0 };
  const polygons = [];
  for (const rest = [whole]; rest.length > 0; ) {
    for (const part of components(/** @type {Part} */ (rest.pop()))) {
      const cut = middleOfHoles(part);
      if (cut === null) polygons.push(outline(part));
      else rest.push(crop(part, 0, 0, cut, part.height), crop(part, cut, 0, part.width - cut, part.height));
    }
  }
  return polygons.sort((a, b) => b.length - a.length);
}

/**
 * @param {Part} part
 * @param {number} left
 * @param {number} top
 * @param {number} width
 * @param {number} height
 * @returns {Part}
 */
function crop(part, left, top, width, height) {
  const data = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const from = (top + y) * part.width + left;
    data.set(part.data.subarray(from, from + width), y * width);
  }
  return { width, height, data, x: part.x + left, y: part.y + top };
}

/**
 * Give the pixels that are reached from one, of the same value, another value.
 * @param {Part} part
 * @param {number} start
 * @param {number} value
 * @param {number[][]} steps
 * @returns {import("./masks.js").Extent} of these pixels
 */
function fill({ width, height, data }, start, value, steps) {
  const old = data[start];
  data[start] = value;
  let [x1, y1, x2, y2] = [width, height, 0, 0];
  for (const rest = [start]; rest.length > 0; ) {
    const at = /** @type {number} */ (rest.pop());
    const [x, y] = [at % width, Math.floor(at / width)];
    [x1, y1, x2, y2] = [Math.min(x1, x), Math.min(y1, y), Math.max(x2, x), Math.max(y2, y)];
    for (const [dx, dy] of steps) {
      const next = at + dy * width + dx;
      const isWithin = x + dx >= 0 && x + dx < width && y + dy >= 0 && y + dy < height;
      if (!isWithin || data[next] !== old) continue;
      data[next] = value;
      rest.push(next);
    }
  }
  return { x1, y1, x2, y2 };
}

/**
 * Pixels that hang together by their sides.
 * @param {Part} part
 * @returns {Part[]} in the order of their first pixels
 */
function components(part) {
  const left = { ...part, data: part.data.slice() };
  /** @type {Part[]} */
  const found = [];
  for (let at = left.data.indexOf(1); at >= 0; at = left.data.indexOf(1, at)) {
    const { x1, y1, x2, y2 } = fill(left, at, 2, NEIGHBOURS);
    const one = crop(left, x1, y1, x2 - x1 + 1, y2 - y1 + 1);
    found.push({ ...one, data: one.data.map((value) => (value === 2 ? 1 : 0)) });
    for (let y = y1; y <= y2; y++) {
      for (let i = y * left.width + x1; i <= y * left.width + x2; i++) if (left.data[i] === 2) left.data[i] = 0;
    }
  }
  return found;
}

/**
 * The column at which a part has as many columns with holes to the left as to the right; null without holes.
 * @param {Part} part
 */
function middleOfHoles(part) {
  const padded = pad(part);
  fill(padded, 0, 2, ALL_NEIGHBOURS); // the outside reaches through corners
  const columns = [];
  for (let x = 0; x < part.width; x++) {
    let hasHole = false;
    for (let at = x + 1; at < padded.data.length && !hasHole; at += padded.width) hasHole = padded.data[at] === 0;
    if (hasHole) columns.push(x);
  }
  return columns.length > 0 ? columns[Math.floor(columns.length / 2)] : null;
}

/** @param {Part} part with a pixel of nothing around it */
function pad({ width, height, data, x, y }) {
  const around = new Uint8Array((width + 2) * (height + 2));
  const padded = { width: width + 2, height: height + 2, data: around, x: x - 1, y: y - 1 };
  for (let row = 0; row < height; row++) {
    padded.data.set(data.subarray(row * width, (row + 1) * width), (row + 1) * padded.width + 1);
  }
  return padded;
}

/**
 * The way around a part without holes, clockwise from the first corner of its first row.
 * @param {Part} part
 */
function outline(part) {
  const padded = pad(part);
  const isInside = (/** @type {number[]} */ [dx, dy]) => padded.data[(y + 1 + dy) * padded.width + x + 1 + dx] === 1;
  const first = part.data.indexOf(1);
  let [x, y, way] = [first, 0, 0];
  const corners = [];
  do {
    x += WAYS[way][0];
    y += WAYS[way][1];
    const [left, right] = AHEAD[way];
    if (isInside(right) && !isInside(left)) continue;
    corners.push(x + part.x, y + part.y);
    way = (way + (isInside(right) ? 3 : 1)) % 4;
  } while (x !== first || y !== 0 || way !== 0);
  return corners;
}
