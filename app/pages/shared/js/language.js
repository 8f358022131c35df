// The buttons that choose the language, and the texts of the page in it.

import { language, onLanguage, setLanguage, translate } from "./i18n.js";

const buttons = document.querySelectorAll("[data-lang]");

for (const button of buttons) button.addEventListener("click", () => setLanguage(button.dataset.lang));
onLanguage(() => {
  translate();
  for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.lang === language()));
});
