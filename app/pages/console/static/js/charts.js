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
  const column = (name, count, at) => draw("rect", { class: name, x: at * 20 + 3, y: 80 - (80 * count) / most, width: 14, height: (80 * count) / most });
  const pairs = counts.map(({ placed, verified, label: title }, at) => draw("g", {},
    draw("title", {}, title), column("placed", placed, at), column("verified", verified, at)));
  return draw("svg", { viewBox: `0 0 ${counts.length * 20} 80`, preserveAspectRatio: "none", role: "img", "aria-label": label }, ...pairs);
}

/** One bar: a part of a whole, of the most that any bar beside it has. */
export function bar(part, whole, most) {
  const rect = (name, width) => draw("rect", { class: name, width: (100 * width) / most, height: 8 });
  return draw("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, rect("placed", whole), rect("verified", part));
}
