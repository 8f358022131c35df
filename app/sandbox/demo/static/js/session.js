// What the form is in the middle of: one verification from the number to its end. It knows no element of the page.

import { newKey, send } from "./api.js";
import { language } from "./i18n.js";
import { recall, remember } from "./memory.js";
import { slugOf } from "./problems.js";
import { watch } from "./watch.js";

const FINAL = ["verified", "locked", "canceled", "failed"];

/** The state: `stage` is number, pending, or an end (verified, locked, expired, canceled, failed). */
const INITIAL = {
  stage: "number",
  busy: null, // start or check, while it is under way
  phone: "", // as it was typed
  wanted: "voice", // the channel that was chosen
  channel: "voice", // and the one that was taken
  verification: null,
  proof: null, // the answer to a right code
  wrong: 0, // how many codes were wrong since the last call
  renewed: false, // another call was asked for, but the verification was over, so a new one was started
  problem: null,
  retryAt: 0, // when the problem or the lock is over, in ms of Date.now
  resendAt: null, // null: no more calls
  expiresAt: 0,
};

/** Of a reverse call there is no code: once it was dialed, a check tells so. */
const wasDialed = ({ code_length: length, call }) => length === null && call?.status === "completed";

const after = (seconds) => Date.now() + seconds * 1000;
const digits = (phone) => phone.replace(/\D/g, "").slice(-10);

/**
 * Build a session. `channels` are all there are; `calling` is awaited before each start, `resuming` is called when a
 * verification begun before is taken up; `stream` tells whether there is a stream of events.
 */
export function createSession({ channels, stream, calling, resuming }) {
  let state = { ...INITIAL };
  let stopWatching = () => {};
  let turn = 0; // of the latest start; the answer to an earlier one is of no interest any more
  const listeners = [];

  function update(changes) {
    state = { ...state, ...changes };
    for (const listener of listeners) listener(state);
  }

  function accept(view, changes = {}) {
    const times = {
      resendAt: view.resend_in === null ? null : after(view.resend_in),
      expiresAt: after(view.expires_in),
      // A new verification can be started when the phone can be called again.
      ...(view.status === "locked" && state.stage !== "locked" && { retryAt: state.resendAt ?? 0 }),
    };
    const stage = FINAL.includes(view.status) ? view.status : "pending";
    update({ ...changes, ...times, verification: view, channel: view.channel, stage });
    remember("pending", stage === "pending" ? `${digits(state.phone)} ${view.verification_id}` : "");
    if (stage !== "pending") rest();
    else if (wasDialed(view) && !state.busy) check();
  }

  function follow() {
    rest();
    if (state.stage !== "pending") return;
    const id = state.verification.verification_id;
    stopWatching = watch(id, { stream, changed: (view) => accept(view), gone: expire });
  }

  function rest() {
    stopWatching();
    stopWatching = () => {};
  }

  function end(stage, changes = {}) {
    remember("pending", "");
    rest();
    update({ stage, ...changes });
  }

  const expire = () => end("expired");

  async function start(phone, wanted) {
    const mine = (turn += 1);
    const isAnotherCall = state.stage === "pending";
    const id = pendingOf(phone);
    update({ busy: "start", phone, wanted, problem: null });
    await calling(phone);
    // The others are tried where the one that was chosen is refused, or was not answered before.
    const order = [wanted, ...channels.filter((channel) => channel !== wanted)];
    const body = { phone, channels: order, lang: language() };
    let answer = await place({ ...body, verification_id: id });
    const isOver = id && slugOf(answer.body) === "verification-not-found";
    if (isOver && mine === turn) answer = await place(body);
    if (mine !== turn) return;
    if (answer.ok) {
      accept(answer.body, { busy: null, proof: null, wrong: 0, renewed: Boolean(isOver) && isAnotherCall });
      return follow();
    }
    const isTooEarly = slugOf(answer.body) === "call-cooldown";
    if (isTooEarly && !isAnotherCall && answer.body.verification_id && (await takeUp(answer.body.verification_id))) return;
    const retryAt = after(answer.body.retry_after ?? 0);
    update({ busy: null, problem: answer.body, retryAt, ...(isTooEarly && isAnotherCall && { resendAt: retryAt }) });
  }

  const place = (body) => send("POST", "/verify/start", { body, headers: { "Idempotency-Key": newKey() } });

  /** The pending verification of a number: the one that is shown, or one from before the page was loaded anew. */
  function pendingOf(phone) {
    if (state.stage === "pending") return state.verification.verification_id;
    const [number, id] = recall("pending")?.split(" ") ?? [];
    return number === digits(phone) ? id : undefined;
  }

  /** Go on with a verification that was begun before, such as before the page was loaded anew; tell if there is one. */
  async function takeUp(id) {
    const answer = await send("GET", `/verify/${id}`);
    if (!answer.ok) return false;
    resuming();
    accept(answer.body, { busy: null, wanted: answer.body.channel });
    follow();
    return true;
  }

  async function check(code) {
    const id = state.verification.verification_id;
    update({ busy: "check", problem: null });
    const answer = await send("POST", "/verify/check", { body: code ? { verification_id: id, code } : { verification_id: id } });
    if (state.verification?.verification_id !== id) return;
    update({ busy: null });
    if (answer.ok) judge(answer.body, code);
    else refuse(answer.body);
  }

  function judge(result, code) {
    if (result.verified) return end("verified", { proof: result });
    if (result.status === "locked") return end("locked", { retryAt: after(result.retry_after) });
    const checksLeft = result.checks_left ?? state.verification.checks_left;
    update({ verification: { ...state.verification, checks_left: checksLeft }, wrong: state.wrong + (code ? 1 : 0) });
  }

  function refuse(problem) {
    switch (slugOf(problem)) {
      case "verification-not-found": return expire();
      case "verification-already-used": return end("verified");
      case "verification-canceled": return end("canceled");
      case "verification-locked": return end("locked", { retryAt: after(problem.retry_after) });
      default: return update({ problem, retryAt: after(problem.retry_after ?? 0) });
    }
  }

  /** Back to the number; a verification that is still pending is called off. */
  async function restart() {
    const { stage, verification } = state;
    turn += 1;
    remember("pending", "");
    rest();
    update({ ...INITIAL, phone: state.phone });
    if (stage === "pending") await send("POST", `/verify/${verification.verification_id}/cancel`);
  }

  /** Look at the clock: a code that is over needs nobody to say so. */
  function tick() {
    if (state.stage === "pending" && !state.busy && Date.now() >= state.expiresAt) expire();
  }

  return {
    start,
    check,
    restart,
    tick,
    get state() { return state; },
    subscribe(listener) { listeners.push(listener); listener(state); },
  };
}
