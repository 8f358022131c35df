// The journal: each request and answer of the API as it happens; repeated questions share one line.

import { onExchange } from "./api.js";
import { asCurl } from "./curl.js";
import { byId, copy, make, write } from "./dom.js";
import { onLanguage, t, translate } from "./i18n.js";

const KEPT = 60;

const pretty = (value) => (value === undefined ? "" : JSON.stringify(value, null, 2));
const lines = (headers) => Object.entries(headers ?? {}).map(([name, value]) => `${name}: ${value}`).join("\n");

const shorten = (path) => path.replace(/(vrf_[0-9a-f]{4})[0-9a-f]+/, "$1…");

/** Build the journal: from now on it tells every exchange. */
export function createJournal() {
  const list = byId("entries");
  let top = {}; // of each kind the newest line, into which a repetition goes

  function add(exchange) {
    const sandbox = exchange.path.startsWith("/sandbox/");
    const name = `${exchange.method} ${exchange.path} ${exchange.status}`;
    const kind = sandbox ? "sandbox" : exchange.path.endsWith("/events") ? "stream" : "api";
    if (exchange.method === "GET" && top[kind]?.name === name) return top[kind].again(exchange);
    const line = createEntry(exchange, sandbox);
    list.prepend(line.node);
    top[kind] = { name, again: line.again };
    while (list.children.length > KEPT) list.lastElementChild.remove();
    count();
  }

  function count() {
    const visible = list.querySelector(byId("show-sandbox").checked ? "li" : 'li[data-sandbox="no"]');
    byId("journal-empty").hidden = Boolean(visible);
  }

  byId("clear").addEventListener("click", () => {
    list.replaceChildren();
    top = {};
    count();
  });
  byId("show-sandbox").addEventListener("change", (event) => {
    list.classList.toggle("with-sandbox", event.target.checked);
    count();
  });
  onLanguage(() => translate(list));
  onExchange(add);
}

function createEntry(first, sandbox) {
  let newest = first;
  let times = 1;
  const status = make("span", { className: "code" });
  const repeated = make("span", { className: "times" });
  const took = make("span", { className: "took" });
  const request = block("request");
  const answer = block("answer");
  const curlText = make("span", { data: { text: "copy_curl" } });
  const curl = make("button", { type: "button", className: "plain curl", on: {
    click: async () => {
      await copy(asCurl(newest));
      curl.dataset.copied = "yes";
      curlText.textContent = t("copied");
      setTimeout(() => {
        delete curl.dataset.copied;
        curlText.textContent = t("copy_curl");
      }, 1500);
    },
  } }, curlText);
  const summary = make("summary", {}, make("b", { textContent: first.method, data: { method: first.method } }),
    make("span", { className: "path", textContent: shorten(decodeURIComponent(first.path)) }), repeated, took, status);
  const details = make("details", {}, summary, make("div", { className: "blocks" }, request.node, answer.node));
  const node = make("li", { data: { sandbox: sandbox ? "yes" : "no" } }, details, curl);

  function fill() {
    status.dataset.tone = newest.status >= 200 && newest.status < 300 ? "good" : "bad";
    write(status, newest.status ? String(newest.status) : "—");
    write(repeated, times > 1 ? `×${times}` : "");
    write(took, t("took", { count: newest.milliseconds }));
    request.write([lines(newest.headers), pretty(newest.body)]);
    answer.write([lines(newest.told), pretty(newest.answered)]);
  }

  fill();
  translate(node);
  return { node, again(exchange) { newest = exchange; times += 1; fill(); } };
}

/** A titled block of headers and JSON; it can be scrolled with the keyboard. */
function block(name) {
  const code = make("pre", { tabIndex: 0, role: "group", data: { label: name } });
  const node = make("div", {}, make("h3", { data: { text: name } }), code);
  return { node, write: (parts) => {
    const text = parts.filter(Boolean).join("\n\n");
    node.hidden = !text;
    write(code, text);
  } };
}
