// Puts the page together: the session between the form and the telephone.

import { byId, write } from "./dom.js";
import { createForm } from "./form.js";
import { createInbox } from "./inbox.js";
import { t } from "./i18n.js";
import { createJournal } from "./journal.js";
import { createPhone } from "./phone.js";
import { createScenario } from "./scenario.js";
import { createSession } from "./session.js";

const { channels, events } = await (await fetch("./demo/config.json")).json();

createJournal();
createInbox();
const number = byId("number");
const scenario = createScenario(number, channels);
const phone = createPhone();
const session = createSession({ channels, stream: events, calling: phone.expect, resuming: phone.resume });
createForm(session, scenario, phone);
session.subscribe(phone.follow);

/** Say the state of the call to who cannot see it; the ends and the problems take the focus or are alerts. */
session.subscribe(({ stage, verification, wrong }) => {
  if (stage !== "pending") return write(byId("announcer"), "");
  if (wrong) return write(byId("announcer"), t("wrong", { count: verification.checks_left }));
  const status = phone.progress(verification.call?.status);
  return write(byId("announcer"), status ? t(`progress.${status}`) : "");
});

const showNumber = () => phone.show(number.value);
number.addEventListener("input", showNumber);
byId("outcome").addEventListener("change", showNumber);
scenario.onChange(showNumber);
showNumber();
await scenario.load();
document.documentElement.dataset.ready = "yes";
