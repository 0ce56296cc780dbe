// The picture that is clicked on. Clicks and drags are told to the server in shares of the picture's width and height.
const SLOP = 6; // pixels that a click may move before it is a box

const share = (event) => {
  const frame = element.querySelector("img").getBoundingClientRect();
  const within = (value) => Math.min(Math.max(value, 0), 1);
  return [within((event.clientX - frame.left) / frame.width), within((event.clientY - frame.top) / frame.height)];
};

let start = null; // where the pointer went down

const moved = (event) => Math.hypot(event.clientX - start.x, event.clientY - start.y) > SLOP;

element.addEventListener("pointerdown", (event) => {
  if (event.target.tagName !== "IMG" || event.button === 1) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  start = { x: event.clientX, y: event.clientY, share: share(event), other: event.button === 2 || event.shiftKey };
});

element.addEventListener("pointermove", (event) => {
  if (!start) return;
  const band = element.querySelector(".band");
  const [[x1, y1], [x2, y2]] = [start.share, share(event)];
  band.style.display = moved(event) ? "block" : "none";
  band.style.left = `${100 * Math.min(x1, x2)}%`;
  band.style.top = `${100 * Math.min(y1, y2)}%`;
  band.style.width = `${100 * Math.abs(x2 - x1)}%`;
  band.style.height = `${100 * Math.abs(y2 - y1)}%`;
});

element.addEventListener("pointerup", (event) => {
  if (!start) return;
  element.querySelector(".band").style.display = "none";
  const [[x1, y1], [x2, y2]] = [start.share, share(event)];
  if (moved(event)) trigger("boxed", { x1, y1, x2, y2 });
  else trigger("pointed", { x: x1, y: y1, other: start.other });
  start = null;
});

element.addEventListener("pointercancel", () => {
  start = null;
  element.querySelector(".band").style.display = "none";
});

element.addEventListener("contextmenu", (event) => event.preventDefault());
