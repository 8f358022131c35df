// The list of calls: the latest by filters, or those to one phone, which never stands in a URL.

import { get, post } from "./api.js";
import { byId, make, write } from "./dom.js";
import { formatPhone, onLanguage, t } from "./i18n.js";
import { createPanel } from "./panel.js";
import { list, row, soft, tag } from "./rows.js";
import { toneOf, verdict } from "./verdict.js";
import { time, word } from "./words.js";

const DAYS = ["1", "7", "30"];
const CHANNELS = ["", "voice", "flash_call", "reverse_call"];
const OUTCOMES = [
  "", "verified", "refused", "unconfirmed", "busy", "no_answer", "failed", "locked", "expired", "canceled", "pending",
];
const PAGE = 50;
const DAY = 86_400_000; // ms

/**
 * Build the list; `open` shows a verification. Return the function that loads the list again, unless it shows something
 * that does not change by itself: a search, or earlier calls.
 */
export function createAttempts(open) {
  const filters = byId("filters");
  let phone = null; // of the search, if there is one
  let before = null; // of the latest page of earlier calls, if they were asked for
  let earlier = []; // the attempts of the pages before that one
  let next = null; // the `before` of the next page

  async function load() {
    if (phone) return post("/admin/attempts/find", { phone });
    const since = new Date(Date.now() - byId("days").value * DAY).toISOString();
    const query = new URLSearchParams({ since, limit: PAGE });
    if (before) query.set("before", before);
    for (const [name, value] of new FormData(filters)) if (value.trim()) query.set(name, value.trim());
    const page = await get(`/admin/attempts?${query}`);
    next = page.next_before;
    return { attempts: [...earlier, ...page.attempts], refused_starts: [] };
  }

  let shown = [];
  const refresh = createPanel("attempts", load, ({ attempts, refused_starts: refused }) => {
    shown = attempts;
    byId("earlier").hidden = phone !== null || next === null;
    return list([...attempts.map(entry), ...refused.map(refusal)]);
  });

  const entry = (attempt) => make("button", {
    type: "button", className: "row", data: { id: `${attempt.verification_id}.${attempt.call_number}` },
    on: { click: () => open(attempt.verification_id) },
  },
  time(attempt.started_at), make("b", { textContent: formatPhone(attempt.phone) }),
  soft([word(attempt.channel), attempt.operator].filter(Boolean).join(", ")), soft(attempt.client),
  tag(word(verdict(attempt)), toneOf(verdict(attempt))));

  const refusal = ({ hour, reason, count }) => row(
    time(hour), make("b", { textContent: t("refused_starts", { count }) }),
    make("code", { textContent: reason }), soft(t(`refusals.${reason}`)), tag(t("not_asked"), "bad"));

  function restart(wanted) {
    [phone, before, earlier] = [wanted, null, []];
    filters.hidden = phone !== null;
    byId("all").hidden = phone === null;
    sayLive();
    return refresh();
  }

  const isLive = () => phone === null && before === null;
  const sayLive = () => write(byId("live"), isLive() ? t("live") : "");

  onLanguage(() => {
    sayLive();
    fill("days", DAYS, (days) => t("last_days", { count: Number(days) }));
    fill("channel", CHANNELS, (name) => (name ? word(name) : t("any")));
    fill("outcome", OUTCOMES, (name) => (name ? word(name) : t("any")));
  });
  filters.addEventListener("change", () => restart(null));
  filters.addEventListener("submit", (event) => event.preventDefault()); // the change that precedes it is enough
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = byId("wanted").value.trim();
    return wanted.startsWith("vrf_") ? open(wanted) : restart(wanted);
  });
  byId("all").addEventListener("click", () => {
    byId("wanted").value = "";
    restart(null);
  });
  byId("earlier").addEventListener("click", () => {
    [before, earlier] = [next, shown];
    byId("earlier").hidden = true; // until it is known whether there are more
    sayLive();
    refresh();
  });
  return () => (isLive() ? refresh() : undefined);
}

/** Put the options of a choice into the language of the page; it stays chosen. */
function fill(id, values, textOf) {
  const chosen = byId(id).value || values[0];
  const option = (value) => make("option", { value, textContent: textOf(value), selected: value === chosen });
  byId(id).replaceChildren(...values.map(option));
}
