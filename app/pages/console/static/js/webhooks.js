// The webhooks that were given up, and sending them again; in the sandbox also those that were sent.

import { get, post } from "./api.js";
import { make } from "./dom.js";
import { t } from "./i18n.js";
import { createPanel } from "./panel.js";
import { action, list, row, soft, tag } from "./rows.js";
import { time } from "./words.js";

const SHOWN = 20;

/** Build the panel of those that were given up; return the function that loads it. */
export function createFailedWebhooks() {
  const failed = ({ id, given_up_at: at, client, type, attempts: count, error }) => row(
    time(at), make("b", { textContent: client }), soft(type), soft(t("tries", { count, error })),
    action(id, "resend", () => post(`/admin/webhooks/failed/${encodeURIComponent(id)}/resend`), refresh));
  const refresh = createPanel("failed", () => get("/admin/webhooks/failed"), ({ events }) => list(events.map(failed)));
  return refresh;
}

/** Build the panel of those that were sent within a day; return the function that loads it. */
export function createSentWebhooks() {
  const outcome = ({ url, error }) => {
    if (error) return tag(error, "bad");
    return url ? tag(t("delivered"), "good") : tag(t("no_url"));
  };
  const sent = (attempt) => row(
    time(attempt.sent_at), make("b", { textContent: attempt.client }),
    soft(attempt.event.type), soft(attempt.url ?? ""), outcome(attempt));
  const render = ({ attempts }) => list(attempts.slice(-SHOWN).reverse().map(sent));
  return createPanel("sent", () => get("/sandbox/events"), render);
}
