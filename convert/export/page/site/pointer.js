/** What pointers and keys on the photo mean. */

import { boxBetween, clampToPhoto, toPhoto } from "./geometry.js";

/**
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {{
 *   hover(point: Point | null): void,
 *   keep(point: Point, isBackground: boolean): void,
 *   drag(box: import("./geometry.js").Box, isDone: boolean): void,
 *   cancel(): void,
 *   undo(): void,
 *   move(point: Point): void}} Actions
 */

/** Pixels of the screen from which on a movement is a box and no click. */
const DRAG = { mouse: 6, touch: 12 };

/**
 * Listen to mouse, pen and touch.
 * @param {HTMLElement} target that the photo fills
 * @param {() => Size} size of the photo
 * @param {Actions} actions
 */
export function listenToPointers(target, size, actions) {
  /** @type {{id: number, x: number, y: number, from: Point, isBox: boolean} | null} */
  let down = null;
  const at = (/** @type {PointerEvent} */ event) =>
    clampToPhoto(toPhoto(event, target.getBoundingClientRect(), size()), size());

  target.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    target.setPointerCapture(event.pointerId);
    down = { id: event.pointerId, x: event.clientX, y: event.clientY, from: at(event), isBox: false };
  });
  target.addEventListener("pointermove", (event) => {
    if (down === null) {
      if (event.pointerType === "mouse") actions.hover(at(event));
      return;
    }
    if (event.pointerId !== down.id) return;
    const far = event.pointerType === "touch" ? DRAG.touch : DRAG.mouse;
    down.isBox ||= Math.hypot(event.clientX - down.x, event.clientY - down.y) > far;
    if (down.isBox) actions.drag(boxBetween(down.from, at(event), size()), false);
  });
  target.addEventListener("pointerup", (event) => {
    if (down === null || event.pointerId !== down.id) return;
    const { from, isBox } = down;
    down = null;
    if (isBox) actions.drag(boxBetween(from, at(event), size()), true);
    else actions.keep(from, event.shiftKey);
  });
  target.addEventListener("pointercancel", () => {
    down = null;
    actions.cancel();
  });
  target.addEventListener("pointerleave", () => down === null && actions.hover(null));
}

/**
 * Arrow keys move a cursor, by much with shift; Enter keeps a point, B one of background, Backspace undoes.
 * @param {HTMLElement} target
 * @param {() => Size} size
 * @param {Actions} actions
 */
export function listenToKeys(target, size, actions) {
  /** @type {Point | null} */
  let cursor = null;
  /** @type {Record<string, [number, number]>} */
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  target.addEventListener("blur", () => (cursor = null));
  target.addEventListener("keydown", (event) => {
    const { width, height } = size();
    const step = steps[event.key];
    if (event.ctrlKey && event.key !== "z") return;
    if (step) {
      const far = Math.max(width, height) / (event.shiftKey ? 10 : 60);
      cursor ??= { x: width / 2, y: height / 2 };
      cursor = clampToPhoto({ x: cursor.x + step[0] * far, y: cursor.y + step[1] * far }, size());
      actions.move(cursor);
    } else if (["Enter", " ", "b"].includes(event.key) && cursor !== null) actions.keep(cursor, event.key === "b");
    else if (event.key === "Backspace" || event.key === "z") actions.undo();
    else return;
    event.preventDefault();
  });
}
