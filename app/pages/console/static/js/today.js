// Today: whether the service can work, what was called, and what it cost.

import { get } from "./api.js";
import { bar, columns } from "./charts.js";
import { make } from "./dom.js";
import { find, t } from "./i18n.js";
import { createPanel } from "./panel.js";
import { rub, word } from "./words.js";

/** Return a list of figures [name, value, tone]; the name is that of a text, or of a provider. */
function figures(...facts) {
  return make("dl", { className: "figures" }, ...facts.map(([name, value, tone = ""]) => make("div", {},
    make("dt", { textContent: find(`figures.${name}`) ?? name }),
    make("dd", { textContent: value, data: { name, tone } }))));
}

/** Build the panel of what calls need; return the function that loads it. */
export function createHealth() {
  const load = async () => ({
    ready: await get("/readyz", { accepted: [503] }), // Redis does not answer: that is what it says
    account: await get("/provider/account").catch(() => ({ balance_rub: null })), // nor need the provider
  });
  const bad = (isBad) => (isBad ? "bad" : "");
  return createPanel("health", load, ({ ready, account: { balance_rub: balance } }) => {
    const isDown = ready.status === "unavailable";
    const circuits = Object.entries(ready.circuits);
    return [figures(
      ["redis", t(isDown ? "down" : "up"), bad(isDown)],
      ...circuits.map(([name, circuit]) => [name, word(circuit), bad(circuit !== "closed")]),
      ["balance", balance === null ? t("unknown") : rub(balance), bad(ready.balance === "low")],
    )];
  });
}

/** Build the panel of the statistics; return the function that loads it. `onChange` is called when they change. */
export function createToday(onChange) {
  let last;
  async function load() {
    const stats = await get("/admin/stats?by=hour&by=channel&by=operator");
    const text = JSON.stringify(stats);
    if (last && text !== last) onChange();
    last = text;
    return stats;
  }
  return createPanel("today", load, render);
}

function render({ total, rows, tz }) {
  return [
    figures(
      ["placed", total.placed], ["answered", total.answered], ["verified", total.verified],
      ["conversion", total.conversion === null ? "—" : `${Math.round(100 * total.conversion)} %`],
      ["spend", rub(total.spend_rub)]),
    make("div", { className: "charts" },
      chart(t("by_hour", { tz }), hours(rows, total)),
      chart(t("by_channel"), groups(rows, "channel")),
      chart(t("by_operator"), groups(rows, "operator"))),
  ];
}

const chart = (caption, node) => make("figure", {}, make("figcaption", { textContent: caption }), node);

/** Return the sums of rows that have the same key, by key. */
function sums(rows, keyOf) {
  const found = new Map();
  for (const { group, placed, verified } of rows) {
    const sum = found.get(keyOf(group)) ?? { placed: 0, verified: 0 };
    found.set(keyOf(group), { placed: sum.placed + placed, verified: sum.verified + verified });
  }
  return found;
}

function hours(rows, total) {
  const found = sums(rows, ({ hour }) => hour.slice(11, 13)); // of 2026-01-31T09:00+03:00
  const counts = Array.from({ length: 24 }, (_, hour) => {
    const name = String(hour).padStart(2, "0");
    const sum = found.get(name) ?? { placed: 0, verified: 0 };
    return { ...sum, label: `${name}:00: ${t("verified_of", sum)}` };
  });
  const busy = counts.filter(({ placed }) => placed).map(({ label }) => label);
  const scale = ["00", "06", "12", "18"].map((textContent) => make("span", { textContent }));
  return make("div", {},
    columns(counts, [t("chart", total), ...busy].join("; ")),
    make("div", { className: "hours", ariaHidden: "true" }, ...scale));
}

function groups(rows, dimension) {
  const found = [...sums(rows, (group) => group[dimension])].sort(([, one], [, other]) => other.placed - one.placed);
  if (!found.length) return make("p", { className: "soft", textContent: "—" });
  const [[, { placed: most }]] = found;
  return make("ul", { className: "bars" }, ...found.map(([name, sum]) => make("li", {},
    make("b", { textContent: word(name) || t("unknown") }),
    make("span", { textContent: t("verified_of", sum) }),
    bar(sum.verified, sum.placed, most || 1))));
}
