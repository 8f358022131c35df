// Sends requests to the API, and reports each request and its response to listeners.

const listeners = [];
let key = "";

/** Listen to each exchange: {method, path, headers, body, status, answered, milliseconds}. */
export const onExchange = (listener) => listeners.push(listener);

export const setKey = (value) => { key = value.trim(); };
export const hasKey = () => key !== "";

/** Tell an exchange that did not go through `send`, such as a stream of events. */
export function tell(exchange) {
  for (const listener of listeners) listener(exchange);
}

/** Send a request. Never throws: without an answer the status is 0 and the body a problem of type "network". */
export async function send(method, path, { body, headers = {} } = {}) {
  const request = { method, path, headers: { ...headers }, body };
  if (body) request.headers["Content-Type"] = "application/json";
  if (key) request.headers.Authorization = `Bearer ${key}`;
  const began = performance.now();
  const answer = await exchange(request);
  tell({ ...request, ...answer, milliseconds: Math.round(performance.now() - began) });
  return { ok: answer.status >= 200 && answer.status < 300, status: answer.status, body: answer.answered };
}

// The path is taken from where the page is, for a proxy may have put the service under a prefix.
async function exchange({ method, path, headers, body }) {
  try {
    const response = await fetch(`.${path}`, { method, headers, body: body && JSON.stringify(body) });
    const text = await response.text();
    return { status: response.status, answered: parse(text), told: notable(response.headers) };
  } catch {
    return { status: 0, answered: { type: "network" }, told: {} };
  }
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return { type: "unknown", detail: text.slice(0, 200) };
  }
}

const NOTABLE = ["Location", "Retry-After", "RateLimit", "RateLimit-Policy", "Idempotent-Replayed", "X-Request-ID"];

function notable(headers) {
  return Object.fromEntries(NOTABLE.filter((name) => headers.has(name)).map((name) => [name, headers.get(name)]));
}

/** A name for a request; crypto.randomUUID is not there outside of a secure context. */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
