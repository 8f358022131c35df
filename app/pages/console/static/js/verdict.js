// What to make of an attempt: the one word that says most about it, and how good that is.

const UNREACHED = new Set(["busy", "no_answer", "failed"]);
const BAD = new Set([...UNREACHED, "refused", "unconfirmed", "locked", "expired", "canceled", "wrong_code"]);

/** Return the word that says most: the provider refused it, how the verification ended, what became of the call. */
export function verdict({ outcome, call_status: call, ending }) {
  if (outcome === "refused" || outcome === "asked") return outcome;
  if (ending === "verified" || ending === "locked" || ending === "canceled") return ending;
  if (UNREACHED.has(call)) return call;
  return outcome === "unconfirmed" ? outcome : ending ?? outcome;
}

export const toneOf = (name) => (name === "verified" ? "good" : BAD.has(name) ? "bad" : "");
