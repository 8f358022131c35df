// The form as an end user meets it: shows the session, and does what its buttons say.

import { setKey } from "./api.js";
import { createBoxes } from "./boxes.js";
import { byId, copy, write } from "./dom.js";
import { clock, find, formatPhone, onLanguage, t } from "./i18n.js";
import { say, slugOf } from "./problems.js";

const left = (moment) => Math.max(0, Math.ceil((moment - Date.now()) / 1000));
const UNHEARD = ["busy", "no_answer", "failed"];

/** Build the form of a session; `scenario` tells the channel that is chosen, `phone` how far the call is. */
export function createForm(session, scenario, phone) {
  const boxes = createBoxes(byId("boxes"), (code) => session.check(code));
  const number = byId("number");
  let shown = { stage: null, id: null, wrong: 0, calls: 0 };

  byId("number-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(byId("key").value);
    if (!session.state.busy) session.start(number.value.trim(), scenario.channel());
  });
  byId("code-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (boxes.code().length < session.state.verification.code_length) boxes.focus();
    else if (!session.state.busy) session.check(boxes.code());
  });
  byId("again").addEventListener("click", () => {
    const { busy, phone, wanted } = session.state;
    if (!busy && byId("again").getAttribute("aria-disabled") !== "true") session.start(phone, wanted);
  });
  byId("other").addEventListener("click", () => session.restart());
  byId("restart").addEventListener("click", () => session.restart());
  byId("copy-token").addEventListener("click", async (event) => {
    await copy(session.state.proof.token);
    event.target.textContent = t("copied");
    setTimeout(() => { event.target.textContent = t("copy"); }, 1500);
  });

  function render(state) {
    const ended = state.stage !== "number" && state.stage !== "pending";
    byId("number-form").hidden = state.stage !== "number";
    byId("code-panel").hidden = state.stage !== "pending";
    byId("end-panel").hidden = !ended;
    if (state.stage === "number") renderNumber(state);
    else if (ended) renderEnd(state);
    else renderCode(state);
    renderProblem(state);
    moveFocus(state);
    const { verification_id: id, calls_placed: calls = 0 } = state.verification ?? {};
    shown = { stage: state.stage, id, wrong: state.wrong, calls };
    tick();
  }

  function renderNumber(state) {
    const channel = scenario.channel();
    const calling = state.busy === "start";
    write(byId("number-hint"), t(`number_hint.${channel}`));
    write(byId("call"), calling ? t("calling") : t(`call.${channel}`));
    byId("call").setAttribute("aria-disabled", String(calling));
    if (slugOf(state.problem) === "unauthorized") byId("key-field").hidden = false;
    const wrongNumber = ["phone-not-callable", "validation-failed"].includes(slugOf(state.problem));
    number.setAttribute("aria-invalid", String(Boolean(state.problem) && wrongNumber));
  }

  function renderCode({ verification, wanted, channel, wrong, busy, renewed }) {
    const count = verification.code_length ?? 0;
    const status = phone.progress(verification.call?.status);
    write(byId("code-title"), t(`enter_code.${channel}`, { count }));
    write(byId("code-hint"), t(`code_hint.${channel}`, { phone: formatPhone(verification.phone) }));
    const progress = channel === "reverse_call" ? "waiting" : status;
    byId("renewed").hidden = !renewed;
    byId("switched").hidden = channel === wanted;
    write(byId("progress"), progress ? find(`progress.${progress}`) ?? progress : "");
    byId("progress").dataset.tone = UNHEARD.includes(progress) ? "bad" : progress === "completed" ? "calm" : "live";
    byId("code-form").hidden = count === 0;
    boxes.resize(count);
    boxes.disable(busy === "check");
    if (verification.verification_id !== shown.id || wrong !== shown.wrong) boxes.clear();
    boxes.mark(wrong > 0);
    write(byId("checks"), t(wrong ? "wrong" : "checks_left", { count: verification.checks_left }));
    byId("checks").dataset.tone = wrong ? "bad" : "calm";
    byId("check").setAttribute("aria-disabled", String(busy === "check"));
    byId("dial").hidden = !verification.dial;
    write(byId("dial"), verification.dial ? formatPhone(verification.dial) : "");
  }

  function renderEnd({ stage, proof, verification }) {
    byId("seal").dataset.tone = stage === "verified" ? "good" : "bad";
    write(byId("end-title"), t(`end.${stage}`));
    const phone = formatPhone(proof?.phone ?? verification?.phone ?? "");
    if (stage !== "locked") write(byId("end-hint"), t(`end_hint.${stage}`, { phone }));
    byId("token-field").hidden = !proof;
    write(byId("token"), proof?.token ?? "");
  }

  function renderProblem({ problem }) {
    const box = byId("problem");
    box.hidden = !problem;
    if (!problem) return box.replaceChildren();
    const [title, sentence] = say(problem);
    const parts = ["strong", "p", "p"].map((tag) => document.createElement(tag));
    parts[0].textContent = title;
    parts[1].textContent = sentence;
    parts[2].className = "retry";
    box.replaceChildren(...parts);
  }

  /** Follow what happens: to the first free box, to the title of an end, back to the number. */
  function moveFocus({ stage, verification, wrong }) {
    if (stage === "pending") {
      const isNew = shown.stage !== stage || verification.verification_id !== shown.id;
      const news = isNew || wrong !== shown.wrong || verification.calls_placed !== shown.calls;
      if (news) verification.code_length ? boxes.focus() : byId("code-title").focus();
    } else if (shown.stage && shown.stage !== stage) {
      (stage === "number" ? number : byId("end-title")).focus();
    }
  }

  /** Write the countdowns: each quarter of a second, and only what changed. */
  function tick() {
    session.tick();
    const { state } = session;
    const wait = left(state.retryAt);
    const retry = byId("problem").querySelector(".retry");
    if (retry && state.problem?.retry_after) write(retry, wait ? t("retry_in", { time: clock(wait) }) : t("retry_now"));
    if (state.stage === "pending") tickCode(state);
    if (state.stage === "locked") write(byId("end-hint"), wait ? t("end_hint.locked", { time: clock(wait) }) : t("end_hint.locked_over"));
    write(byId("restart"), state.stage === "locked" && wait ? t("other_number") : t("restart"));
  }

  function tickCode({ resendAt, expiresAt, verification, busy }) {
    const again = byId("again");
    const wait = left(resendAt ?? 0);
    const possible = resendAt !== null && !wait && !busy;
    again.hidden = !verification.code_length;
    again.setAttribute("aria-disabled", String(!possible));
    write(again, busy === "start" ? t("calling") : againText(resendAt, wait));
    write(byId("lifetime"), t(verification.code_length ? "lifetime" : "lifetime_dial", { time: clock(left(expiresAt)) }));
  }

  function againText(resendAt, wait) {
    if (resendAt === null) return t("no_more_calls");
    return wait ? t("again_in", { time: clock(wait) }) : t("again");
  }

  session.subscribe(render);
  scenario.onChange(() => render(session.state));
  phone.onChange(() => render(session.state));
  onLanguage(() => {
    boxes.label();
    render(session.state);
  });
  setInterval(tick, 250);
}
