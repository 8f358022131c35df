// Small helpers for the page's elements; text is only ever set as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** Make an element: properties are set as they are, `data` as data attributes, `on` as listeners. */
export function make(tag, { data = {}, on = {}, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  Object.assign(node.dataset, data);
  for (const [event, listener] of Object.entries(on)) node.addEventListener(event, listener);
  node.append(...children);
  return node;
}

/** Set an element's text, only when it changes: a live region says each change. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Copy a text; without a secure context (plain http from another machine) the old way is the only one. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
