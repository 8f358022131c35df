// Lists of things to look at and to repair, one in a row.

import { byId, make, write } from "./dom.js";
import { t } from "./i18n.js";
import { explain } from "./words.js";

export const soft = (textContent) => make("span", { className: "soft", textContent });
export const tag = (textContent, tone = "") => make("span", { className: "tag", data: { tone }, textContent });
export const row = (...cells) => make("div", { className: "row" }, ...cells);

/** Return the list of some rows; none of them: nothing. */
export function list(rows) {
  return rows.length ? [make("ul", { className: "rows" }, ...rows.map((one) => make("li", {}, one)))] : [];
}

/** Return a button that changes something, then loads its panel again. A failure is said beside it. */
export function action(id, name, change, refresh) {
  const button = make("button", { type: "button", className: "secondary small", textContent: t(name), data: { id } });
  const problem = make("span", { className: "bad", role: "alert" });
  button.addEventListener("click", async () => {
    write(problem, "");
    button.disabled = true;
    try {
      await change();
    } catch (failure) {
      button.disabled = false;
      return write(problem, explain(failure));
    }
    write(byId("announcer"), t("done"));
    await refresh();
    byId("main").focus(); // the button is gone
  });
  return make("span", { className: "action" }, button, problem);
}
