/** Masks and prompts as they are drawn over a photo: the style of `repvit_sam_jax/inference/overlay.py`. */

/**
 * @typedef {import("./masks.js").Part} Part
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./geometry.js").Prompt} Prompt
 * @typedef {readonly number[]} Colour red, green and blue, 0 to 255
 */

const [FOREGROUND, BACKGROUND, BOX] = ["rgb(60 220 90)", "rgb(235 60 60)", "rgb(255 210 0)"];
/** @type {Colour} */
export const WHITE = [255, 255, 255];

/**
 * Tint a mask and draw its outline, both smooth at their edges: the distance of a pixel from the edge is its logit over
 * the logits' slope.
 * @param {ImageData} picture transparent, or with other masks beneath
 * @param {Part} part
 * @param {{threshold: number, tint: Colour, line: Colour, opacity: number, width: number}} style `width` in pixels
 */
export function drawMask(picture, part, { threshold, tint, line, opacity, width }) {
  const { values } = part;
  for (let y = 0, at = 0; y < part.height; y++) {
    const [up, down] = [y > 0 ? part.width : 0, y < part.height - 1 ? part.width : 0];
    let to = ((part.top + y) * picture.width + part.left) * 4;
    for (let x = 0; x < part.width; x++, at++, to += 4) {
      const [left, right] = [x > 0 ? 1 : 0, x < part.width - 1 ? 1 : 0];
      const across = (values[at + right] - values[at - left]) / Math.max(left + right, 1);
      const along = (values[at + down] - values[at - up]) / Math.max(Math.sign(up) + Math.sign(down), 1);
      const inside = (values[at] - threshold) / Math.max(Math.hypot(across, along), 1e-3);
      const edge = clamp(width / 2 + 0.5 - Math.abs(inside));
      const share = clamp(inside + 0.5) * opacity;
      if (share > 0) put(picture.data, to, tint, share);
      if (edge > 0) put(picture.data, to, line, edge);
    }
  }
}

const clamp = (/** @type {number} */ value) => Math.min(Math.max(value, 0), 1);

/**
 * A colour over what is there.
 * @param {Uint8ClampedArray} data RGBA
 * @param {number} at
 * @param {Colour} colour
 * @param {number} share
 */
function put(data, at, colour, share) {
  const beneath = (data[at + 3] / 255) * (1 - share);
  const whole = share + beneath;
  for (let c = 0; c < 3; c++) data[at + c] = (colour[c] * share + data[at + c] * beneath) / whole;
  data[at + 3] = whole * 255;
}

/**
 * Points, green for foreground and red for background, and a yellow box.
 * @param {CanvasRenderingContext2D} context of a canvas that shows the whole photo
 * @param {Prompt} prompt
 * @param {Size} photo
 * @param {number} unit pixels of the canvas that are one on the screen
 */
export function drawPrompt(context, prompt, photo, unit) {
  const [sx, sy] = [context.canvas.width / photo.width, context.canvas.height / photo.height];
  if (prompt.box !== null) {
    const { x1, y1, x2, y2 } = prompt.box;
    const corners = /** @type {const} */ ([x1 * sx, y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy]);
    stroke(context, "rgb(0 0 0 / 0.6)", 4 * unit, () => context.strokeRect(...corners));
    stroke(context, BOX, 2 * unit, () => context.strokeRect(...corners));
  }
  for (const { x, y, label } of prompt.points) {
    context.beginPath();
    context.arc(x * sx, y * sy, 6 * unit, 0, 2 * Math.PI);
    context.fillStyle = label ? FOREGROUND : BACKGROUND;
    context.fill();
    stroke(context, "rgb(0 0 0 / 0.6)", 3.5 * unit, () => context.stroke());
    stroke(context, "white", 2 * unit, () => context.stroke());
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {string} colour
 * @param {number} width
 * @param {() => void} draw
 */
function stroke(context, colour, width, draw) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  draw();
}

/**
 * A cross, where the keyboard's cursor is.
 * @param {CanvasRenderingContext2D} context
 * @param {import("./geometry.js").Point} point
 * @param {Size} photo
 * @param {number} unit
 */
export function drawCursor(context, point, photo, unit) {
  const [x, y] = [(point.x / photo.width) * context.canvas.width, (point.y / photo.height) * context.canvas.height];
  const cross = () => {
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + 4 * unit * dx, y + 4 * unit * dy);
      context.lineTo(x + 14 * unit * dx, y + 14 * unit * dy);
    }
    context.stroke();
  };
  stroke(context, "rgb(0 0 0 / 0.7)", 4 * unit, cross);
  stroke(context, "white", 2 * unit, cross);
}
