// Says a problem of the API (RFC 9457) in words for the person in front of the form.

import { find } from "./i18n.js";

/** Problems about which the form says enough by its state. */
export const slugOf = (problem) => String(problem?.type ?? "unknown").split("/").pop();

/** A title and a sentence, in the language of the page; of a kind that is not known, in the API's own words. */
export function say(problem) {
  const slug = slugOf(problem);
  const known = find(`problems.${slug}`);
  if (Array.isArray(known)) return [known[0], slug === "validation-failed" ? problem.detail : known[1]];
  if (known?.[problem.reason]) return known[problem.reason];
  const [title, sentence] = find("problems.unknown");
  return [problem.title ?? title, problem.detail ?? sentence];
}
