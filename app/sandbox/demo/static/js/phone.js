// The virtual telephone: rings, is answered, speaks the code and shows it; or dials, where the person is to call.

import { byId, make, write } from "./dom.js";
import { formatPhone, onLanguage, t, textIn } from "./i18n.js";
import { createLine } from "./line.js";
import { recall, remember } from "./memory.js";
import { allowSound, startRing, stopRing } from "./ring.js";
import { speak, stopSpeech } from "./speech.js";

const WANTING = ["ringing", "flash", "dial"]; // something of the person
const FLASH_RINGS = 4000; // in the network it is one second: too short to be noticed
const DIALING = 2500; // before that nobody can have dialed a number that was just shown, and the service believes no one
const COMING = ["connecting_in", "ringing", "connecting", "flash"];
const LOST = ["busy", "no_answer", "failed"];

/** What the two keys do in each state of the telephone. */
const KEYS = {
  ringing: ["decline", "answer"],
  flash: ["decline", null],
  connecting: ["hang_up", null],
  talking: ["hang_up", null],
  completed: [null, "replay"],
  declined: [null, "listen"],
  dial: [null, "dial"],
};

/** Build the telephone. */
export function createPhone() {
  let state = "idle";
  let call = null;
  let dialed = null; // what is to be dialed: {from, number}
  let inSight = true;
  let muted = recall("muted") === "yes";
  const line = createLine(rang);
  const listeners = [];
  const keys = { hang_up: byId("hang-up"), answer: byId("answer") };

  function rang(news) {
    if (news.channel === "reverse_call") return; // it is this telephone that calls
    const isNew = news.call_id !== call?.call_id;
    call = news;
    if (isNew) enter("connecting_in");
    if (LOST.includes(call.status) && COMING.includes(state)) enter(state === "connecting_in" && call.status === "no_answer" ? "lost" : call.status);
    else if (call.channel === "flash_call") flash();
    else if (state === "connecting" && call.heard) talk();
    else if (state === "connecting_in" && call.status !== "queued") enter("ringing");
    else render();
  }

  /** A call whose number is the code: it rings a little, and is over. */
  function flash() {
    if (state !== "connecting_in" || call.status === "queued") return render();
    enter("flash");
    setTimeout(() => { if (state === "flash") enter("flashed"); }, FLASH_RINGS);
  }

  function enter(next) {
    state = next;
    if (["ringing", "flash"].includes(state) && !muted) startRing();
    else stopRing();
    if (state !== "talking") {
      stopSpeech();
      light(-1);
    }
    render();
    for (const listener of listeners) listener();
  }

  /** How far a call is, as the form says it: in the network it may be over while this telephone still rings or talks. */
  function progress(status) {
    if (status !== "completed" || dialed) return status;
    if (COMING.includes(state)) return state === "connecting" ? "answered" : "ringing";
    return state === "talking" ? "answered" : status;
  }

  /** What is left of a call: of a flash call only who called, for nothing was said. */
  const over = (otherwise) => (call.channel === "flash_call" ? "flashed" : otherwise);

  const answer = () => (call.heard ? talk() : enter("connecting"));

  async function talk() {
    enter("talking");
    const { heard: code, lang, repeat } = call;
    const said = await speak({ code, lang, repeat, intro: textIn("spoken", lang), silent: () => muted, at: light });
    if (said && state === "talking") enter("completed");
  }

  async function dial() {
    enter("dialing");
    const { from, number, shown } = dialed;
    await new Promise((resolve) => { setTimeout(resolve, shown + DIALING - Date.now()); });
    if (state !== "dialing") return;
    const result = await line.dial(from, number);
    if (state === "dialing") enter(result.ok ? "hung_up" : "dial_failed");
  }

  function render() {
    byId("phone").dataset.state = state;
    write(byId("phone-what"), t(`phone_states.${state}`));
    write(byId("pill"), t(`phone_states.${state}`));
    byId("pill").hidden = inSight || !WANTING.includes(state);
    renderWho();
    renderCaption();
    const [hangUp, go] = KEYS[state] ?? [null, null];
    renderKey(keys.hang_up, hangUp);
    renderKey(keys.answer, go === "replay" && !call?.heard ? null : go);
  }

  function renderWho() {
    const calling = state !== "idle" && call?.caller && !dialed;
    write(byId("phone-who"), dialed ? formatPhone(dialed.number) : calling ? formatPhone(call.caller) : t(call ? "who" : "your_phone"));
  }

  function renderKey(button, name) {
    const hadFocus = document.activeElement === button;
    button.hidden = !name;
    button.dataset.key = name ?? "";
    write(button.querySelector("span"), name ? t(`phone_keys.${name}`) : "");
    if (hadFocus && button.hidden) Object.values(keys).find((other) => !other.hidden)?.focus();
  }

  /** The code as it was said, or, of a call that is not answered, the digits of the caller that are the code. */
  function renderCaption() {
    const code = ["talking", "completed"].includes(state) ? call.heard : null;
    const digits = ["flash", "flashed"].includes(state) ? call.caller?.slice(-4) : null;
    const text = code ?? digits ?? "";
    const caption = byId("caption");
    caption.hidden = !text;
    if (caption.dataset.code === text) return;
    caption.dataset.code = text;
    const shown = [...text].map((digit) => make("span", { textContent: digit, ariaHidden: "true" }));
    const said = make("span", { className: "unseen", textContent: t("caption", { code: [...text].join(" ") }) });
    caption.replaceChildren(...(text ? [said, ...shown] : []));
  }

  function light(index) {
    byId("caption").querySelectorAll("[aria-hidden]").forEach((digit, place) => digit.classList.toggle("lit", place === index));
  }

  function press(name) {
    allowSound();
    const does = { answer, replay: talk, listen: answer, dial, decline: () => enter(over("declined")), hang_up: () => enter("completed") };
    does[name]?.();
  }

  function mute(silent) {
    muted = silent;
    remember("muted", silent ? "yes" : "no");
    byId("mute").setAttribute("aria-pressed", String(silent));
    if (silent) {
      stopRing();
      globalThis.speechSynthesis?.cancel();
    } else if (["ringing", "flash"].includes(state)) {
      allowSound();
      startRing();
    }
  }

  for (const button of Object.values(keys)) button.addEventListener("click", () => press(button.dataset.key));
  byId("mute").addEventListener("click", () => mute(!muted));
  mute(muted);
  new IntersectionObserver(([entry]) => {
    inSight = entry.isIntersecting;
    render();
  }, { threshold: 0.5 }).observe(byId("phone"));
  onLanguage(() => {
    byId("caption").dataset.code = "";
    render();
  });

  /** Belong to a number, and wait for its calls. */
  async function expect(number) {
    allowSound();
    dialed = null;
    call = null;
    write(byId("phone-number"), formatPhone(number));
    enter("idle");
    await line.connect(number);
  }

  /** Nobody waits for the call any more. */
  function finish(stage) {
    if (dialed) enter(stage === "verified" ? "dialed" : "idle");
    else if ([...COMING, "talking"].includes(state)) enter(over("completed"));
  }

  /** Follow the session: what is to be dialed, and when there is nothing more to wait for. */
  function follow({ stage, busy, phone, verification }) {
    if (stage === "pending" && verification.dial && dialed?.number !== verification.dial) {
      dialed = { from: phone, number: verification.dial, shown: Date.now() };
      enter("dial");
    }
    if (stage !== "pending" && stage !== "number" && !busy) finish(stage);
    if (stage !== "pending" && !busy) line.rest();
    if (stage === "number" && !busy && state !== "idle") {
      dialed = null;
      enter("idle");
    }
  }

  return { expect, follow, progress, onChange: (listener) => listeners.push(listener), resume: line.resume, show: (number) => state === "idle" && write(byId("phone-number"), formatPhone(number)) };
}
