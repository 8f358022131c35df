// The language of the page: texts by name, plural forms, times and phone numbers as people write them.

import { recall, remember } from "./memory.js";
import en from "./texts/en.js";
import ru from "./texts/ru.js";

const TEXTS = { en, ru };
const listeners = [];
let current = recall("language") ?? (navigator.language.toLowerCase().startsWith("ru") ? "ru" : "en");

export const language = () => current;

/** Call a function now, and again whenever the language changes. */
export function onLanguage(listener) {
  listeners.push(listener);
  listener();
}

export function setLanguage(name) {
  current = name;
  remember("language", name);
  for (const listener of listeners) listener();
}

/** The text of a name such as "progress.busy"; undefined where there is none. */
export function find(name) {
  return name.split(".").reduce((texts, part) => texts?.[part], TEXTS[current]);
}

/** The text of a name, with its {places} filled in; of several forms, the one for `count`. */
export function t(name, places = {}) {
  let text = find(name) ?? name;
  if (typeof text === "object") text = text[new Intl.PluralRules(current).select(places.count)] ?? text.other;
  return text.replace(/\{(\w+)\}/g, (_, place) => String(places[place]));
}

/** The text of a name in a language that need not be the page's: a call keeps the one it was placed in. */
export const textIn = (name, lang) => TEXTS[lang]?.[name] ?? t(name);

/** Put the texts into all elements that name one. */
export function translate(root = document) {
  document.documentElement.lang = current;
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
}

/** 65 → "1:05". */
export function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/** Any spelling of a Russian number → "+7 900 123-45-67"; whatever else it is, as it is. A mask may be in it. */
export function formatPhone(text) {
  const digits = text.replace(/[^\d•]/g, "");
  const parts = /^[78]?(.{3})(.{3})(.{2})(.{2})$/.exec(digits);
  return parts ? `+7 ${parts[1]} ${parts[2]}-${parts[3]}-${parts[4]}` : text;
}
