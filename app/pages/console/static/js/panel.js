// A part of the page that loads: it shows that it does, what it got, that there is nothing, or what went wrong.

import { byId, make } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { explain } from "./words.js";

const state = (textContent, tone = "") => make("p", { className: "state", data: { tone }, textContent });

/**
 * Return the function that loads a panel and shows what it got. `load` returns the data, and `render` the nodes that
 * show them; none: there is nothing. An answer that comes after that of a later load is dropped.
 */
export function createPanel(id, load, render) {
  const panel = byId(id);
  let latest = 0;
  let shown; // the data as text: what has not changed is left alone, with its focus and its selection
  let draw = () => [state(t("loading"))];

  const show = () => {
    const focused = panel.contains(document.activeElement) && document.activeElement.dataset.id;
    panel.replaceChildren(...draw());
    if (focused) byDataId(focused)?.focus();
  };
  onLanguage(show);

  return async function refresh() {
    const turn = ++latest;
    let next, text;
    try {
      const data = await load();
      text = JSON.stringify(data);
      next = () => { const nodes = render(data); return nodes.length ? nodes : [state(t(`empty.${id}`))]; };
    } catch (failure) {
      text = explain(failure);
      next = () => [state(explain(failure), "bad")];
    }
    if (turn !== latest || text === shown) return;
    [shown, draw] = [text, next];
    show();
  };
}

/** The element that stands for a thing of the API: it is another one each time that its panel is drawn. */
export const byDataId = (id) => document.querySelector(`[data-id="${CSS.escape(id)}"]`);
