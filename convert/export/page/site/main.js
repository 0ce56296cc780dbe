/** Where the page begins: threads, the model, and what listens to whom. */

import { App } from "./app.js";
import { listenToKeys, listenToPointers } from "./pointer.js";
import { element } from "./view.js";

const TRIED = "repvit-sam-isolated";

/**
 * Load the page once more through a service worker that adds the headers without which there are no threads. Where
 * that does not work, the page goes on with one thread.
 */
async function isolate() {
  if (globalThis.crossOriginIsolated || !("serviceWorker" in navigator)) return;
  try {
    if (sessionStorage.getItem(TRIED)) return;
    sessionStorage.setItem(TRIED, "yes");
    await navigator.serviceWorker.register("sw.js");
    const isReady = navigator.serviceWorker.ready.then(() => true);
    const isLate = new Promise((resolve) => setTimeout(() => resolve(false), 3000));
    if (!(await Promise.race([isReady, isLate]))) return;
    // Chromium shows this very document again when a person reloads the page the first time.
    addEventListener("pageshow", (event) => event.persisted && location.reload());
    location.reload();
    await new Promise(() => {});
  } catch (error) {
    console.info(`One thread: ${error instanceof Error ? error.message : error}`);
  }
}

/**
 * @param {App} app
 * @param {string} id of a button
 * @param {() => unknown} act
 */
function onClick(app, id, act) {
  element(id, HTMLButtonElement).addEventListener("click", async () => {
    try {
      await act();
    } catch (error) {
      app.fail(error);
    }
  });
}

/** @param {App} app */
function listenForPhotos(app) {
  const file = element("file", HTMLInputElement);
  const take = (/** @type {File | undefined} */ chosen) => chosen && app.take(chosen, chosen.name);
  file.addEventListener("change", () => {
    take(file.files?.[0]);
    file.value = ""; // so that the same file may be chosen again
  });
  onClick(app, "example", async () => {
    const response = await fetch("example.jpg").catch(() => null);
    if (!response?.ok) throw new Error("The example could not be loaded.");
    app.take(await response.blob(), "example.jpg");
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  for (const name of ["dragleave", "drop"]) addEventListener(name, () => document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer?.files[0]);
  });
  addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
}

/** @param {App} app */
function listenToTools(app) {
  onClick(app, "undo", () => app.undo());
  onClick(app, "clear", () => app.clear());
  onClick(app, "refine", () => app.refine());
  onClick(app, "everything", () => app.everything());
  onClick(app, "save-png", () => app.savePng());
  onClick(app, "save-json", () => app.saveJson(false));
  onClick(app, "save-polygons", () => app.saveJson(true));
  element("opacity", HTMLInputElement).addEventListener("input", () => app.redraw());
  element("candidates", HTMLElement).addEventListener("change", () => app.show(app.shown));
  addEventListener("resize", () => app.hasPhoto && app.redraw());
}

async function start() {
  const status = element("status", HTMLElement);
  try {
    await isolate();
    const response = await fetch("model.json", { cache: "no-cache" });
    if (!response.ok) throw new Error(`model.json could not be loaded (${response.status}).`);
    const app = new App(await response.json());
    listenForPhotos(app);
    listenToTools(app);
    const picture = element("picture", HTMLElement);
    listenToPointers(picture, () => app.view.size, app);
    listenToKeys(picture, () => app.view.size, app);
    await app.open();
  } catch (error) {
    document.body.dataset.state = "failed";
    status.textContent = error instanceof Error ? error.message : String(error);
  }
}

start();
