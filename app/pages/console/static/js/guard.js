// What the fraud guard has blocked, and lifting a block.

import { get, remove } from "./api.js";
import { make } from "./dom.js";
import { t } from "./i18n.js";
import { createPanel } from "./panel.js";
import { action, list, row, soft } from "./rows.js";
import { moment } from "./words.js";

/** Build the panel; return the function that loads it. */
export function createGuard() {
  const conversion = ({ calls, successes }) => soft(t("verified_of", { placed: calls, verified: successes }));
  const blocked = (block) => row(
    soft(t("until", { time: moment(block.until) })), make("b", { textContent: block.range }),
    conversion(block), soft(t("level", block)),
    action(block.range, "lift", () => remove(`/admin/guard/${encodeURIComponent(block.range)}`), refresh));
  const suspect = (one) => row(
    soft(t("since", { time: moment(one.since) })), make("b", { textContent: one.client }),
    conversion(one), soft(t("suspect")), soft(""));
  const render = ({ blocks, suspects }) => list([...blocks.map(blocked), ...suspects.map(suspect)]);
  const refresh = createPanel("guard", () => get("/admin/guard"), render);
  return refresh;
}
