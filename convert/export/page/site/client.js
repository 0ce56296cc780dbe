/** The page's side of the worker. */

/**
 * @typedef {import("./model.js").About} About
 * @typedef {import("./model.js").Backend} Backend
 * @typedef {import("./model.js").Decoded & {milliseconds: number}} Answer
 * @typedef {import("./geometry.js").Size} Size
 * @typedef {import("./everything.js").Found} Found
 * @typedef {{resolve: (value: any) => void, reject: (error: Error) => void, progress: (share: number) => void}} Waiting
 */

const ignore = () => {};

export class Client {
  /** @param {About} about */
  constructor(about) {
    this.about = about;
    /** @type {Backend} */
    this.backend = "wasm";
    this.threads = 1;
    /** @type {Map<number, Waiting>} */
    this.waiting = new Map();
    this.id = 0;
    /** @type {Worker | null} */
    this.worker = null;
    /** @type {Blob | null} */
    this.file = null;
  }

  /**
   * Start on the graphics processor if there is one that computes rightly, or else in WebAssembly.
   * @param {(share: number) => void} progress
   */
  async open(progress) {
    if ("gpu" in navigator) {
      try {
        return await this.start("webgpu", progress);
      } catch (error) {
        console.info(`Not on the graphics processor: ${error instanceof Error ? error.message : error}`);
      }
    }
    return this.start("wasm", progress);
  }

  /**
   * @param {Backend} backend
   * @param {(share: number) => void} progress
   */
  async start(backend, progress) {
    this.worker?.terminate();
    this.waiting.forEach(({ reject }) => reject(new Error("The worker was started anew.")));
    this.waiting.clear();
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.receive(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.waiting.forEach(({ reject }) => reject(new Error(event.message || "The worker does not start.")));
      this.waiting.clear();
    };
    this.backend = backend;
    const opened = await this.send({ task: "open", about: this.about, backend, base: document.baseURI }, progress);
    this.threads = opened.threads;
  }

  /** @param {{id: number, progress?: number, error?: string, result?: unknown}} message */
  receive(message) {
    const waiting = this.waiting.get(message.id);
    if (waiting === undefined) return;
    if (message.progress !== undefined) return waiting.progress(message.progress);
    this.waiting.delete(message.id);
    if (message.error !== undefined) waiting.reject(new Error(message.error));
    else waiting.resolve(message.result);
  }

  /**
   * @param {Record<string, unknown>} request
   * @param {(share: number) => void} [progress]
   * @returns {Promise<any>}
   */
  send(request, progress = ignore) {
    const id = ++this.id;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, progress });
      this.worker?.postMessage({ ...request, id });
    });
  }

  /**
   * `send`, and once more in WebAssembly if a graphics processor fails.
   * @param {Record<string, unknown>} request
   * @param {(share: number) => void} [progress]
   */
  async ask(request, progress) {
    try {
      return await this.send(request, progress);
    } catch (error) {
      if (this.backend !== "webgpu") throw error;
      await this.start("wasm", ignore);
      if (this.file !== null && request.task !== "photo") await this.send({ task: "photo", file: this.file });
      return this.send(request, progress);
    }
  }

  /**
   * @param {Blob} file
   * @returns {Promise<Size & {milliseconds: number}>}
   */
  photo(file) {
    this.file = file;
    return this.ask({ task: "photo", file });
  }

  /**
   * @param {import("./geometry.js").Prompt} prompt
   * @returns {Promise<Answer>}
   */
  decode(prompt) {
    return this.ask({ task: "decode", prompt });
  }

  /**
   * @param {number} perSide
   * @param {Size} picture
   * @param {(share: number) => void} progress
   * @returns {Promise<{found: Found[], milliseconds: number}>}
   */
  everything(perSide, picture, progress) {
    return this.ask({ task: "everything", perSide, picture }, progress);
  }

  /** Let `everything` end with what it has. */
  stop() {
    return this.send({ task: "stop" });
  }
}
