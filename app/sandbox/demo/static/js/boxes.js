// The boxes for the digits of a code: one each, which take a paste, a suggestion of the keyboard, arrows and backspace.

import { make } from "./dom.js";
import { t } from "./i18n.js";

/** The digits of a text in ASCII: fullwidth ones as NFKC has them, Arabic and Persian ones by the end of their code point. */
const digitsOf = (text) => text.normalize("NFKC").replace(/[\u0660-\u0669\u06f0-\u06f9]/g, (digit) => digit.charCodeAt(0) & 15).replace(/\D/g, "");

/** Fill `group` with boxes. `complete` is called with the code when its last digit is typed. */
export function createBoxes(group, complete) {
  let boxes = [];

  const code = () => boxes.map((box) => box.value).join("");

  function resize(count) {
    if (count === boxes.length) return;
    boxes = Array.from({ length: count }, (_, index) => box(index));
    group.replaceChildren(...boxes);
    label();
  }

  function box(index) {
    return make("input", {
      type: "text",
      inputMode: "numeric",
      // The keyboard offers the whole code for the first box; it is spread over all of them.
      autocomplete: index === 0 ? "one-time-code" : "off",
      pattern: "[0-9]*",
      data: { index: String(index) },
      on: {
        input: (event) => spread(index, event.target.value),
        keydown: (event) => move(index, event),
        focus: (event) => event.target.select(),
        paste: (event) => {
          event.preventDefault();
          spread(index, event.clipboardData.getData("text"));
        },
      },
    });
  }

  /** Put what was typed or pasted into this box and those after it; a whole code begins at the first. */
  function spread(index, text) {
    const digits = [...digitsOf(text)];
    const from = digits.length >= boxes.length ? 0 : index;
    boxes[index].value = "";
    digits.slice(0, boxes.length - from).forEach((digit, offset) => { boxes[from + offset].value = digit; });
    if (!digits.length) return;
    const next = Math.min(from + digits.length, boxes.length - 1);
    boxes[next].focus();
    if (code().length === boxes.length) complete(code());
  }

  function move(index, event) {
    const { key } = event;
    if (key === "Backspace" && !boxes[index].value && index > 0) {
      event.preventDefault();
      boxes[index - 1].value = "";
      boxes[index - 1].focus();
    } else if (key === "ArrowLeft" || key === "ArrowRight") {
      event.preventDefault();
      boxes[index + (key === "ArrowLeft" ? -1 : 1)]?.focus();
    } else if (key.length === 1 && !digitsOf(key) && !event.ctrlKey && !event.metaKey && !event.altKey && key !== " ") {
      event.preventDefault();
    }
  }

  function label() {
    boxes.forEach((box, index) => box.setAttribute("aria-label", t("digit", { number: index + 1, count: boxes.length })));
  }

  return {
    resize,
    label,
    code,
    clear() { for (const box of boxes) box.value = ""; },
    focus() { (boxes.find((box) => !box.value) ?? boxes[0])?.focus(); },
    mark(wrong) { for (const box of boxes) box.setAttribute("aria-invalid", String(wrong)); },
    disable(disabled) { for (const box of boxes) box.readOnly = disabled; },
  };
}
