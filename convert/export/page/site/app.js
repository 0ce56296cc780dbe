/** The page: a photo, prompts on it, and what is done with the masks. */

import { Client } from "./client.js";
import { maskToPng, canvasToPng, save, toCoco } from "./download.js";
import { checkPhoto } from "./geometry.js";
import { best } from "./model.js";
import { element, View } from "./view.js";

/**
 * @typedef {import("./geometry.js").Point} Point
 * @typedef {import("./geometry.js").Prompt} Prompt
 * @typedef {import("./client.js").Answer} Answer
 * @typedef {import("./everything.js").Found} Found
 * @typedef {import("./pointer.js").Actions} Actions
 */

/** @type {Prompt} */
const EMPTY = { points: [], box: null };

/** @implements {Actions} */
export class App {
  /** @param {import("./model.js").About} about */
  constructor(about) {
    this.about = about;
    this.client = new Client(about);
    this.view = new View(about);
    this.name = "";
    this.hasPhoto = false;
    /** @type {[Blob, string] | null} a photo that came while something else was done */
    this.next = null;
    /** @type {Prompt[]} what was kept, step by step; the last one counts */
    this.steps = [EMPTY];
    /** @type {{prompt: Prompt, answer: Answer} | null} */
    this.shown = null;
    /** @type {Found[] | null} */
    this.found = null;
    /** @type {Prompt | null} the newest prompt that is to be decoded, older ones are left out */
    this.wanted = null;
    this.isDecoding = false;
    /** @type {Prompt | null} a box that is being drawn, with the points before it */
    this.draft = null;
    /** @type {Point | null} */
    this.cursor = null;
    this.where = "";
    this.isSearching = false;
    this.figures = { encode: 0, decode: 0 };
  }

  get prompt() {
    return this.steps[this.steps.length - 1];
  }

  get isEmpty() {
    return this.prompt.points.length === 0 && this.prompt.box === null;
  }

  /**
   * @param {"loading" | "ready" | "busy" | "failed"} state
   * @param {string} text
   * @param {boolean} [isWrong]
   */
  say(state, text, isWrong = false) {
    document.body.dataset.state = state;
    element("status", HTMLElement).textContent = text;
    element("status", HTMLElement).classList.toggle("wrong", isWrong);
    const canAsk = state === "ready" && this.hasPhoto;
    element("prompt-tools", HTMLFieldSetElement).disabled = !canAsk;
    element("everything-tools", HTMLFieldSetElement).disabled = !canAsk && !this.isSearching;
    element("result-tools", HTMLFieldSetElement).disabled = !canAsk || this.masks().length === 0;
  }

  /** @param {number} share */
  progress(share) {
    element("progress", HTMLProgressElement).value = share;
  }

  /**
   * Say what went wrong.
   * @param {unknown} error
   */
  fail(error) {
    this.say("ready", error instanceof Error ? error.message : String(error), true);
  }

  async open() {
    const megabytes = (this.about.encoder.bytes + this.about.decoder.bytes) / 1e6;
    this.say("loading", `Loading the model ${this.about.name}, ${megabytes.toFixed(0)} MB …`);
    await this.client.open((share) => this.progress(share));
    const where = this.client.backend === "webgpu" ? "graphics processor (WebGPU)" : `processor (WebAssembly, ${counted(this.client.threads, "thread")})`;
    this.where = `${this.about.name}, ${this.about.image_size} pixels, on the ${where}`;
    element("figures", HTMLElement).textContent = this.where;
    this.say("ready", "Ready for a photo.");
    this.takeNext();
  }

  /**
   * @param {Blob} file
   * @param {string} name
   */
  async take(file, name) {
    const state = /** @type {"loading" | "ready" | "busy" | "failed"} */ (document.body.dataset.state);
    if (state !== "ready") {
      if (state === "failed") return;
      this.next = [file, name];
      this.say(state, `${name} is next …`);
      if (this.isSearching) this.client.stop();
      return;
    }
    this.say("busy", "Reading the photo …");
    try {
      const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }).catch(() => {
        throw new Error(`${name} is no picture that this browser can read.`);
      });
      checkPhoto(bitmap, this.about.image_size); // before anything of the photo that is there is lost
      this.hasPhoto = false;
      this.reset();
      this.view.show(bitmap);
      bitmap.close();
      element("empty", HTMLElement).hidden = true;
      element("picture", HTMLElement).hidden = false;
      document.body.dataset.photo = name;
      this.redraw();
      this.progress(0);
      element("progress", HTMLProgressElement).removeAttribute("value"); // takes as long as it takes
      this.say("busy", "Looking at the photo …");
      const { milliseconds } = await this.client.photo(file);
      [this.figures.encode, this.name, this.hasPhoto] = [milliseconds, name, true];
      this.say("ready", "Point at something.");
      this.report();
    } catch (error) {
      this.fail(error);
    }
    this.takeNext();
  }

  takeNext() {
    const next = this.next;
    this.next = null;
    if (next !== null) this.take(...next);
  }

  /** Forget all prompts and masks. */
  reset() {
    [this.steps, this.shown, this.found] = [[EMPTY], null, null];
    [this.wanted, this.draft, this.cursor] = [null, null, null];
  }

  get canAsk() {
    return this.hasPhoto && document.body.dataset.state === "ready";
  }

  /** @param {Point | null} point under the mouse */
  hover(point) {
    if (!this.canAsk || !this.isEmpty || this.found !== null) return;
    this.cursor = null;
    this.ask(point && { points: [{ ...point, label: 1 }], box: null });
  }

  /** @param {Point} point of the keyboard's cursor */
  move(point) {
    this.hover(point);
    this.cursor = point;
    this.redraw();
  }

  /**
   * @param {Point} point
   * @param {boolean} isBackground
   */
  keep(point, isBackground) {
    if (!this.canAsk) return;
    const isObject = !isBackground && element("is-object", HTMLInputElement).checked;
    const { points, box } = this.prompt;
    this.step({ points: [...points, { ...point, label: isObject ? 1 : 0 }], box });
  }

  /**
   * @param {import("./geometry.js").Box} box
   * @param {boolean} isDone
   */
  drag(box, isDone) {
    if (!this.canAsk) return;
    const prompt = { points: this.prompt.points, box };
    if (isDone) return this.step(prompt);
    [this.found, this.draft] = [null, prompt];
    this.redraw();
    this.ask(prompt);
  }

  /** A box is not drawn to its end. */
  cancel() {
    this.draft = null;
    this.answerPrompt();
  }

  /** @param {Prompt} prompt */
  step(prompt) {
    [this.found, this.draft] = [null, null];
    this.steps.push(prompt);
    this.answerPrompt();
  }

  /** The mask that is shown goes back into the decoder, with its prompt. */
  refine() {
    if (!this.canAsk || !this.canRefine) return;
    const [mask] = this.masks();
    /** @type {HTMLInputElement} */ (document.querySelector("[name=candidate][value=best]")).checked = true;
    this.step({ ...this.prompt, mask });
  }

  get canRefine() {
    return this.found === null && this.shown?.prompt === this.prompt;
  }

  undo() {
    if (!this.canAsk) return;
    if (this.found !== null) this.found = null;
    else if (this.steps.length > 1) this.steps.pop();
    this.answerPrompt();
  }

  clear() {
    this.reset();
    this.ask(null);
  }

  /** Decode what was kept; background alone means nothing. */
  answerPrompt() {
    const means = this.prompt.box !== null || this.prompt.points.some((point) => point.label === 1);
    this.ask(means ? this.prompt : null);
  }

  /**
   * Show the masks of a prompt, or none. While one is decoded the newest waits, so that hovering does not queue up.
   * @param {Prompt | null} prompt
   */
  async ask(prompt) {
    this.wanted = prompt;
    if (prompt === null) this.show(null);
    if (this.isDecoding || !this.hasPhoto) return;
    this.isDecoding = true;
    try {
      while (this.wanted !== null) {
        /** @type {Prompt} */
        const asked = this.wanted;
        const answer = await this.client.decode(asked);
        this.figures.decode = answer.milliseconds;
        if (this.wanted === null) break;
        if (this.wanted === asked) this.wanted = null;
        this.show({ prompt: asked, answer });
      }
    } catch (error) {
      this.fail(error);
    } finally {
      this.isDecoding = false;
    }
  }

  /** @param {{prompt: Prompt, answer: Answer} | null} result */
  show(result) {
    this.shown = result;
    this.redraw();
    if (this.hasPhoto && !this.isSearching) this.say("ready", this.sentence());
    this.report();
  }

  sentence() {
    if (this.found !== null) return `${counted(this.found.length, "mask")} found.`;
    if (this.shown === null) return this.isEmpty ? "Point at something." : "Background alone is no object: add a point of one.";
    const { points, box } = this.prompt;
    const parts = [...(points.length ? [counted(points.length, "point")] : []), ...(box ? ["a box"] : [])];
    const isKept = this.shown.prompt === this.prompt;
    const what = isKept ? `Kept ${parts.join(" and ")}` : `${this.draft ? "Let go" : "Click"} to keep it`;
    const refined = this.shown.prompt.mask ? ", refined" : "";
    return `${what}${refined}: predicted IoU ${percent(this.shown.answer.iou[this.chosen()])}.`;
  }

  /** Number of the mask that is shown, of the decoder's four. */
  chosen() {
    if (this.shown === null) return 0;
    const { value } = /** @type {HTMLInputElement} */ (document.querySelector("[name=candidate]:checked"));
    return value === "best" ? best(this.shown.answer.iou, this.shown.prompt) : Number(value);
  }

  /**
   * Logits of what is shown, the largest mask first.
   * @returns {Float32Array[]}
   */
  masks() {
    if (this.found !== null) return [...this.found].sort((a, b) => b.area - a.area).map((one) => one.logits);
    return this.shown === null ? [] : [this.shown.answer.masks[this.chosen()]];
  }

  redraw() {
    this.view.draw({
      masks: this.masks(),
      isOne: this.found === null,
      prompt: this.found !== null ? null : (this.draft ?? this.prompt),
      cursor: this.cursor,
      opacity: Number(element("opacity", HTMLInputElement).value),
    });
  }

  report() {
    const { encode, decode } = this.figures;
    const times = encode ? ` Photo ${milliseconds(encode)}${decode ? `, mask ${milliseconds(decode)}` : ""}.` : "";
    element("figures", HTMLElement).textContent = `${this.where}.${times}`;
    element("refine", HTMLButtonElement).disabled = !this.canRefine;
    document.querySelectorAll("#candidates span").forEach((span, i) => {
      const isThree = this.shown !== null && this.found === null && i > 0;
      span.textContent = isThree ? `${i}: ${percent(this.shown?.answer.iou[i] ?? 0)}` : ["Best", "1", "2", "3"][i];
    });
  }

  async everything() {
    if (this.isSearching) return this.client.stop();
    const button = element("everything", HTMLButtonElement);
    const perSide = Number(element("per-side", HTMLSelectElement).value);
    this.reset();
    this.isSearching = true;
    button.textContent = "Stop";
    this.progress(0);
    this.redraw();
    try {
      this.say("busy", "Finding everything …");
      const { found, milliseconds: time } = await this.client.everything(perSide, this.view.picture, (share) => {
        this.progress(share);
        this.say("busy", `Finding everything … ${percent(share)}`);
      });
      this.found = found;
      this.isSearching = false;
      this.show(null);
      this.say("ready", `${this.sentence().slice(0, -1)} in ${(time / 1000).toFixed(1)} s.`);
    } catch (error) {
      this.isSearching = false;
      this.fail(error);
    } finally {
      button.textContent = "Find everything";
    }
    this.takeNext();
  }

  get stem() {
    return this.name.replace(/\.[^.]*$/, "");
  }

  async savePng() {
    if (this.found !== null) return save(await canvasToPng(this.view.merged()), `${this.stem}_masks.png`);
    const mask = this.view.fullSize().mask(this.masks()[0], this.about.mask_threshold);
    return save(await maskToPng(mask, this.view.size), `${this.stem}_mask.png`);
  }

  /** @param {boolean} asPolygons */
  saveJson(asPolygons) {
    const iou = this.shown?.answer.iou[this.chosen()] ?? 0;
    const one = () => ({ logits: this.masks()[0], iou, prompt: this.shown?.prompt ?? EMPTY });
    const file = toCoco(this.name, this.view.fullSize(), this.about, this.found ?? [one()], asPolygons);
    save(file, `${this.stem}_${asPolygons ? "polygons" : "masks"}.json`);
  }
}

const percent = (/** @type {number} */ share) => `${Math.round(100 * Math.min(Math.max(share, 0), 1))} %`;
const milliseconds = (/** @type {number} */ time) => (time < 1000 ? `${time.toFixed(0)} ms` : `${(time / 1000).toFixed(1)} s`);
const counted = (/** @type {number} */ count, /** @type {string} */ unit) => `${count} ${unit}${count === 1 ? "" : "s"}`;
