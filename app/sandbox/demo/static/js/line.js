// The line of the virtual telephone: asks the sandbox which calls came in, while there is something to wait for.

import { send } from "./api.js";

const PAUSE = 700;

const pathOf = (phone) => `/sandbox/phones/${encodeURIComponent(phone)}`;

/** Build a line. `rang` is given each new call to the phone, and again whenever something about it changed. */
export function createLine(rang) {
  let known = new Set();
  let phone = "";
  let last = "";
  let timer;

  async function calls() {
    const answer = await send("GET", `${pathOf(phone)}/calls`);
    return answer.ok ? answer.body.calls : [];
  }

  /** Belong to a phone from now on; calls that came in before are none of this page's. */
  async function connect(number) {
    rest();
    phone = number;
    known = new Set((await calls()).map((call) => call.call_id));
    last = "";
    ask();
  }

  async function ask() {
    const asked = phone;
    const call = (await calls()).filter(({ call_id }) => !known.has(call_id)).at(-1);
    if (asked !== phone) return;
    if (call && JSON.stringify(call) !== last) {
      last = JSON.stringify(call);
      rang(call);
    }
    timer = setTimeout(ask, PAUSE);
  }

  /** Take up the last of the calls that came in before: it turned out to be this page's. */
  function resume() {
    known = new Set([...known].slice(0, -1));
  }

  function rest() {
    clearTimeout(timer);
    phone = "";
  }

  return { connect, resume, rest, dial: (from, number) => send("POST", `${pathOf(from)}/dial`, { body: { number } }) };
}
