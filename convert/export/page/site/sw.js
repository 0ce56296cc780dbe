/**
 * A service worker that adds the two headers without which browsers give a page no threads.
 *
 * Static hosts send none of them. It adds them to this page alone: where another page is served from the same address
 * later, such as from http://localhost:8000, it takes itself away.
 */

const worker = /** @type {any} */ (self);
const MARK = 'name="generator" content="repvit-sam export web"';

worker.addEventListener("install", () => worker.skipWaiting());
worker.addEventListener("activate", (/** @type {any} */ event) => event.waitUntil(worker.clients.claim()));
worker.addEventListener("fetch", (/** @type {any} */ event) => {
  const { request } = event;
  const isOurs = request.url.startsWith(worker.registration.scope) && request.method === "GET";
  if (isOurs && ["document", "worker"].includes(request.destination)) event.respondWith(isolated(request));
});

/** @param {Request} request */
async function isolated(request) {
  const response = await fetch(request, { cache: "no-cache" }); // what is there now, whatever a cache has
  if (!response.ok || response.redirected) return response;
  if (request.destination === "document" && !(await response.clone().text()).includes(MARK)) {
    await worker.registration.unregister();
    return response;
  }
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
