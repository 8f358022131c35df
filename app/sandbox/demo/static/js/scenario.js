// The choice of a situation: how the code arrives, and what happens to the call (by the sandbox's magic numbers).

import { send } from "./api.js";
import { byId, make } from "./dom.js";
import { find, formatPhone, onLanguage, t } from "./i18n.js";

const ORDINARY = "+79001234567";
const MTS = { phone: "+79101234567" }; // an ordinary number, but flash calls do not reach its operator
/** The channels to which the effect of a number matters; one that is not named here matters to all. */
const MATTERS = {
  "+79000000001": ["voice", "flash_call"],
  "+79000000002": ["voice", "flash_call"],
  "+79000000006": ["voice", "flash_call"],
  "+79000000008": ["voice", "flash_call"],
  "+79000000009": ["voice"],
  "+79000000010": ["voice"],
  "+79000000011": ["flash_call"],
  "+79000000012": ["reverse_call"],
  "+79000000013": ["reverse_call"],
  "+79000000014": ["reverse_call"],
  [MTS.phone]: ["flash_call"],
};

const digits = (text) => text.replace(/\D/g, "").slice(-10);

/** Build the choice. The number that belongs to an outcome goes into `number`; typing another one un-chooses it. */
export function createScenario(number, channels) {
  const listeners = [];
  const outcome = byId("outcome");
  let magic = [MTS];
  let channel = channels[0];

  const changed = () => listeners.forEach((listener) => listener());

  function choice(name) {
    const input = make("input", { type: "radio", name: "channel", value: name, checked: name === channel, on: {
      change: () => {
        channel = name;
        list();
        changed();
      },
    } });
    return make("label", {}, input, make("span", { data: { text: `channels.${name}` }, textContent: t(`channels.${name}`) }));
  }

  function list() {
    const offered = magic.filter(({ phone }) => MATTERS[phone]?.includes(channel) ?? true);
    const ordinary = make("option", { value: ORDINARY, textContent: t(`ordinary.${channel}`) });
    const others = offered.map(({ phone, effect }) => make("option", { value: phone, textContent: find("magic")[phone] ?? effect }));
    outcome.replaceChildren(ordinary, ...others);
    if (isMagic() && !offered.some(isTyped)) number.value = formatPhone(ORDINARY);
    recognise();
  }

  const isTyped = ({ phone }) => digits(phone) === digits(number.value);
  const isMagic = () => magic.some(isTyped);
  const recognise = () => { outcome.value = [...outcome.options].find(({ value }) => isTyped({ phone: value }))?.value ?? ORDINARY; };

  outcome.addEventListener("change", () => { number.value = formatPhone(outcome.value); });
  number.addEventListener("input", recognise);
  byId("channels").append(...channels.map(choice));
  byId("channels").closest("fieldset").hidden = channels.length < 2;
  onLanguage(list);

  async function load() {
    const answer = await send("GET", "/sandbox/magic-numbers");
    if (answer.ok) magic = [...answer.body.numbers, MTS];
    list();
  }

  return { load, channel: () => channel, onChange: (listener) => listeners.push(listener) };
}
