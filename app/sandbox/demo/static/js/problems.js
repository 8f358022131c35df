// Says a problem of the API (RFC 9457) in words for the person in front of the form.

import { find, language } from "./i18n.js";

/** Problems about which the form says enough by its state. */
export const slugOf = (problem) => String(problem?.type ?? "unknown").split("/").pop();

/** What the API itself says, which is in English; on a page in another language, our own words. */
const detailed = (said, otherwise) => (language() === "en" && said) || otherwise;

/** A title and a sentence, in the language of the page. */
export function say(problem) {
  const slug = slugOf(problem);
  const known = find(`problems.${slug}`);
  if (Array.isArray(known)) return [known[0], slug === "validation-failed" ? detailed(problem.detail, known[1]) : known[1]];
  if (known?.[problem.reason]) return known[problem.reason];
  const [title, sentence] = find("problems.unknown");
  return [detailed(problem.title, title), detailed(problem.detail, sentence)];
}
