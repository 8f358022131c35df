// Times, money, failures and the words of the journal, in the language of the page.

import { Failure } from "./api.js";
import { make } from "./dom.js";
import { find, language, t } from "./i18n.js";

/** A word of the API in the language of the page; one that is not known, such as an operator's name, as it is. */
export const word = (name) => find(`words.${name}`) ?? name;

export const rub = (amount) => new Intl.NumberFormat(language(), {
  style: "currency", currency: "RUB", currencyDisplay: "narrowSymbol", trailingZeroDisplay: "stripIfInteger",
}).format(amount);

const TWO = "2-digit";
const MOMENT = { day: TWO, month: TWO, hour: TWO, minute: TWO, second: TWO, hourCycle: "h23" };
export const moment = (at) => new Intl.DateTimeFormat(language(), MOMENT).format(new Date(at));
export const dayOf = (at) => new Intl.DateTimeFormat(language(), { dateStyle: "medium" }).format(new Date(at));
export const time = (at) => make("time", { dateTime: at, textContent: moment(at) });

/** Say why a request failed. What is no Failure is a mistake in this page, and thrown on. */
export function explain(failure) {
  if (!(failure instanceof Failure)) throw failure;
  if (failure.status === 0) return t("problems.offline");
  const { type = "", detail } = failure.problem;
  if (language() === "en" && detail) return detail;
  return find(`problems.${type.split("/").pop()}`) ?? t("problems.other", { status: failure.status });
}
