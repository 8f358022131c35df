// One verification: each of its calls as a time line, why it failed, and what to do.

import { get } from "./api.js";
import { byId, make } from "./dom.js";
import { find, formatPhone, t } from "./i18n.js";
import { byDataId, createPanel } from "./panel.js";
import { toneOf, verdict } from "./verdict.js";
import { dayOf, rub, time, word } from "./words.js";

/** Build the dialog; return {open, refresh}. */
export function createAttempt() {
  const dialog = byId("attempt");
  let id = null;
  let opener;
  const load = async () => (id ? get(`/admin/attempts/${encodeURIComponent(id)}`, { accepted: [404] }) : {});
  const refresh = createPanel("verification", load, render);

  function open(verification) {
    id = verification;
    opener = document.activeElement?.dataset.id;
    dialog.showModal();
    byId("attempt-title").focus();
    return refresh();
  }

  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    id = null;
    refresh(); // what it showed must not flash up with the next one
    if (opener) byDataId(opener)?.focus(); // by now another element than the one that the browser remembers
  });
  return { open, refresh: () => (id ? refresh() : undefined) };
}

function render({ attempts = [] }) {
  const [first] = attempts;
  if (!first) return []; // or it is so long ago that the journal has no more of it
  const cost = attempts.reduce((sum, { cost_rub: rubles }) => sum + Number(rubles), 0);
  return [
    facts({
      phone: formatPhone(first.phone), id: first.verification_id, client: first.client, purpose: first.purpose,
      reference: first.reference, consent: consented(first.consent),
      wrong_codes: first.wrong_codes, cost: rub(cost),
    }),
    ...attempts.map(call),
  ];
}

/** When the subscriber agreed to be called, and to which text, if the client said so. */
const consented = (consent) => consent && `${dayOf(consent.at)}, ${consent.version}`;

const call = (attempt) => make("article", {},
  make("h3", { textContent: t("call", { number: attempt.call_number }) }),
  make("div", { className: "advice", data: { tone: toneOf(verdict(attempt)) } },
    make("b", { textContent: word(verdict(attempt)) }),
    make("p", { textContent: advise(attempt) }),
    ...said(attempt.reason)),
  facts({ channel: word(attempt.channel), operator: attempt.operator, call_ref: attempt.call_ref }),
  make("ol", { className: "line" }, ...attempt.timeline.map(timelineEntry)));

const timelineEntry = ({ at, event, reason }) => make("li", { data: { tone: toneOf(event) } },
  time(at), make("b", { textContent: word(event) }), ...said(reason));

/** The words of the provider, if there are any. */
const said = (reason) => (reason ? [make("code", { textContent: reason })] : []);

/** Say why it failed and what to do; of a refusal the first word of the reason is its kind. */
function advise(attempt) {
  const name = verdict(attempt);
  if (name !== "refused") return t(`advice.${name}`);
  return find(`refused.${attempt.reason.split(":")[0]}`) ?? t("refused.other");
}

/** Return the list of some facts by name, without those that are not known. */
function facts(named) {
  const known = Object.entries(named).filter(([, value]) => value !== null);
  return make("dl", { className: "facts" }, ...known.map(([name, value]) => make("div", {},
    make("dt", { textContent: t(`facts.${name}`) }), make("dd", { textContent: value }))));
}
