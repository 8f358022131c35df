// Puts the console together: the key, the panels, and loading them again while the page is visible.

import { dropKey, Failure, get, hasKey, onForbidden, setKey } from "./api.js";
import { createAttempt } from "./attempt.js";
import { createAttempts } from "./attempts.js";
import { byId, write } from "./dom.js";
import { connectErasure } from "./erasure.js";
import { createGuard } from "./guard.js";
import { t } from "./i18n.js";
import { createHealth, createToday } from "./today.js";
import { createFailedWebhooks, createSentWebhooks } from "./webhooks.js";

const LIVE = 5000; // ms between two loads of what changes with each call
const SLOW = 30_000; // and of the rest

const config = await (await fetch("./console/config.json")).json();
byId("sent-section").hidden = !config.webhook_log;

const attempt = createAttempt();
const attempts = createAttempts(attempt.open);
// The service reads the list from 4,096 buckets, so it is loaded when the statistics say that something happened.
const live = [createToday(() => load([attempts])), attempt.refresh];
const slow = [attempts, createHealth(), createGuard(), createFailedWebhooks()];
if (config.webhook_log) slow.push(createSentWebhooks());
connectErasure(() => load([...live, attempts]));

let isOpen = false;

function show(opened) {
  isOpen = opened;
  byId("console").hidden = !opened;
  byId("key-form").hidden = opened;
  byId("sign-out").hidden = !opened || !hasKey();
}

const loading = new Set();

/** Load panels, unless they are loading: an answer that takes long must not be overtaken by the next request. */
function load(panels) {
  if (!isOpen || document.hidden) return;
  for (const refresh of panels.filter((one) => !loading.has(one))) {
    loading.add(refresh);
    Promise.resolve(refresh()).finally(() => loading.delete(refresh));
  }
}

/** Open the console, unless the service asks for a key. Without an answer the panels say so, and try again. */
async function open() {
  try {
    await get("/admin/audit?limit=1");
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (failure.status === 401) return;
  }
  show(true);
  load([...live, ...slow]);
}

onForbidden(() => {
  write(byId("key-error"), hasKey() ? t("wrong_key") : "");
  dropKey();
  byId("attempt").close();
  byId("sure").close();
  show(false);
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  open();
});
byId("sign-out").addEventListener("click", () => {
  dropKey();
  location.reload(); // nothing that the key has shown stays in the page
});

setInterval(() => load(live), LIVE);
setInterval(() => load(slow), SLOW);
document.addEventListener("visibilitychange", () => load([...live, ...slow]));
await open();
document.documentElement.dataset.ready = "yes";
