// Light and dark: the system's choice, until the person makes another.

import { byId } from "./dom.js";
import { recall, remember } from "./memory.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const current = () => recall("theme") ?? (system.matches ? "dark" : "light");

function apply(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
}

byId("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  remember("theme", theme);
  apply(theme);
});
system.addEventListener("change", () => apply(current()));
apply(current());
