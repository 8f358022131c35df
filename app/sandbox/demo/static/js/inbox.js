// The inbox: the last calls to all phones of the sandbox, also those that your own code started.

import { byId, make } from "./dom.js";
import { find, formatPhone, onLanguage, t } from "./i18n.js";

const SHOWN = 8;
const PAUSE = 2000;

/** Build the inbox, and keep it up to date while the page is visible. */
export function createInbox() {
  let calls = [];
  let shown = "";

  // Not through api.js: the journal would be full of it.
  async function ask() {
    if (document.hidden) return;
    try {
      const response = await fetch(`./sandbox/calls?limit=${SHOWN}`);
      if (response.ok) ({ calls } = await response.json());
      render();
    } catch { /* the sandbox was stopped; it may come back */ }
  }

  function render() {
    const text = JSON.stringify(calls);
    if (text === shown) return;
    shown = text;
    byId("calls-empty").hidden = calls.length > 0;
    byId("calls").replaceChildren(...calls.map(entry));
  }

  onLanguage(() => {
    shown = "";
    render();
  });
  ask();
  setInterval(ask, PAUSE);
}

function entry({ placed_at: at, phone, channel, status, heard }) {
  const time = new Date(at);
  return make("li", { data: { status } },
    make("time", { dateTime: at, textContent: time.toTimeString().slice(0, 8) }),
    make("b", { textContent: formatPhone(phone) }),
    make("span", { className: "channel", textContent: t(`channels.${channel}`) }),
    make("span", { className: "network", textContent: find(`network.${status}`) ?? status }),
    make("code", { textContent: heard ?? "", ariaLabel: heard ? t("caption", { code: [...heard].join(" ") }) : "" }));
}
