// Follows a verification: by its stream of events where there is one, else by asking each second.

import { hasKey, send, tell } from "./api.js";

const PAUSE = 1000;

/**
 * Follow a verification until the returned function is called.
 * `changed` is given what GET /verify/{id} says; `gone` is called once it is no more.
 */
export function watch(id, { stream, changed, gone }) {
  // An EventSource sends no key.
  return stream && !hasKey() ? listen(id, { changed, gone }) : poll(id, { changed, gone });
}

function poll(id, { changed, gone }) {
  let timer = setTimeout(ask, PAUSE);
  let stopped = false;

  async function ask() {
    const answer = await send("GET", `/verify/${id}`);
    if (stopped) return;
    if (answer.status === 404) return gone();
    if (answer.ok) changed(answer.body);
    if (!stopped) timer = setTimeout(ask, PAUSE);
  }

  return () => {
    stopped = true;
    clearTimeout(timer);
  };
}

function listen(id, { changed, gone }) {
  const path = `/verify/${id}/events`;
  const source = new EventSource(`.${path}`);
  const began = performance.now();
  let stop = () => source.close();

  function told(event, body) {
    const milliseconds = Math.round(performance.now() - began);
    tell({ method: "GET", path, headers: {}, status: 200, answered: body, told: { event }, milliseconds });
  }

  source.addEventListener("verification", (event) => {
    const view = JSON.parse(event.data);
    told(`verification ${event.lastEventId}`, view);
    changed(view);
  });
  source.addEventListener("expired", () => {
    told("expired");
    source.close();
    gone();
  });
  source.addEventListener("error", () => {
    // While it connects anew by itself it is not closed; closed, it was refused.
    if (source.readyState === EventSource.CLOSED) stop = poll(id, { changed, gone });
  });
  return () => stop();
}
