// The ring of the virtual telephone, made by the browser itself: two soft notes, twice, and a pause.

const NOTES = [[0, 659.3], [0.18, 830.6], [0.5, 659.3], [0.68, 830.6]]; // seconds after the beginning, Hz
const PERIOD = 2400;

let context;
let timer;
let gain;

/** Make sound possible: a browser allows it only from a gesture of the person. */
export function allowSound() {
  context ??= new AudioContext();
  context.resume();
}

export function startRing() {
  if (timer || !context) return;
  timer = setInterval(ringOnce, PERIOD);
  ringOnce();
}

export function stopRing() {
  clearInterval(timer);
  timer = undefined;
  gain?.disconnect();
  gain = undefined;
}

function ringOnce() {
  gain?.disconnect();
  gain = new GainNode(context, { gain: 0.14 });
  gain.connect(context.destination);
  for (const [after, frequency] of NOTES) note(context.currentTime + after, frequency);
}

function note(at, frequency) {
  const tone = new OscillatorNode(context, { type: "triangle", frequency });
  const envelope = new GainNode(context, { gain: 0 });
  envelope.gain.setValueAtTime(0, at);
  envelope.gain.linearRampToValueAtTime(1, at + 0.02);
  envelope.gain.exponentialRampToValueAtTime(0.001, at + 0.4);
  tone.connect(envelope).connect(gain);
  tone.start(at);
  tone.stop(at + 0.45);
}
