// Small charts in SVG. What they show is in their labels too, for who cannot see them.

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A column for each of some counts {placed, verified, label}, the second in front of the first. */
export function columns(counts, label) {
  const most = Math.max(1, ...counts.map(({ placed }) => placed));
  const column = (name, count, at) => {
    const height = (80 * count) / most;
    return draw("rect", { class: name, x: at * 20 + 3, y: 80 - height, width: 14, height });
  };
  const pairs = counts.map(({ placed, verified, label: title }, at) => draw("g", {},
    draw("title", {}, title), column("placed", placed, at), column("verified", verified, at)));
  return stretched(counts.length * 20, 80, { role: "img", "aria-label": label }, ...pairs);
}

/** One bar: a part of a whole, of the most that any bar beside it has. */
export function bar(part, whole, most) {
  const rect = (name, width) => draw("rect", { class: name, width: (100 * width) / most, height: 8 });
  return stretched(100, 8, { "aria-hidden": "true" }, rect("placed", whole), rect("verified", part));
}

/** An image of this size that takes the width and height of its place. */
const stretched = (width, height, attributes, ...children) =>
  draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", ...attributes }, ...children);
