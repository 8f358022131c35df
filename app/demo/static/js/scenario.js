// The choice of a situation: how the code arrives, and what happens to the call (by the sandbox's magic numbers).

import { send } from "./api.js";
import { byId, make } from "./dom.js";
import { find, formatPhone, onLanguage, t } from "./i18n.js";

const ORDINARY = "+79001234567";

const digits = (text) => text.replace(/\D/g, "").slice(-10);

/** Build the choice. The number that belongs to an outcome goes into `number`; typing another one un-chooses it. */
export function createScenario(number, channels) {
  const listeners = [];
  const outcome = byId("outcome");
  let magic = [];
  let channel = channels[0];

  const changed = () => listeners.forEach((listener) => listener());

  function choice(name) {
    const input = make("input", { type: "radio", name: "channel", value: name, checked: name === channel, on: {
      change: () => { channel = name; changed(); },
    } });
    return make("label", {}, input, make("span", { data: { text: `channels.${name}` }, textContent: t(`channels.${name}`) }));
  }

  function list() {
    const chosen = outcome.value;
    const ordinary = make("option", { value: ORDINARY, textContent: t("ordinary") });
    const others = magic.map(({ phone, effect }) => make("option", { value: phone, textContent: find("magic")[phone] ?? effect }));
    outcome.replaceChildren(ordinary, ...others);
    outcome.value = chosen || ORDINARY;
  }

  outcome.addEventListener("change", () => { number.value = formatPhone(outcome.value); });
  number.addEventListener("input", () => {
    outcome.value = magic.find(({ phone }) => digits(phone) === digits(number.value))?.phone ?? ORDINARY;
  });
  byId("channels").append(...channels.map(choice));
  byId("channels").closest("fieldset").hidden = channels.length < 2;
  onLanguage(list);

  async function load() {
    const answer = await send("GET", "/sandbox/magic-numbers");
    if (answer.ok) magic = answer.body.numbers;
    list();
  }

  return { load, channel: () => channel, onChange: (listener) => listeners.push(listener) };
}
