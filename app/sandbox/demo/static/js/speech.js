// Speaks a code digit by digit with the browser's voices; where there is none, only its pace remains.

const LONGEST_WORD = 2500; // some browsers never tell that a word has ended
const SHORTEST_WORD = 420;

let current = null;

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

/**
 * Speak `intro` and the digits of `code`, `repeat` times. `at` is called with the index of each digit as it is spoken,
 * and with -1 between. Resolves to true when all was said, to false when it was stopped.
 */
export async function speak({ code, intro, lang, repeat, silent, at }) {
  stopSpeech();
  const turn = (current = {});
  for (let round = 0; round < repeat; round += 1) {
    at(-1);
    await word(intro, { lang, silent });
    for (let index = 0; index < code.length && turn === current; index += 1) {
      at(index);
      await word(code[index], { lang, silent });
    }
    if (turn !== current) return false;
  }
  at(-1);
  return true;
}

export function stopSpeech() {
  current = null;
  globalThis.speechSynthesis?.cancel();
}

async function word(text, { lang, silent }) {
  const voice = silent() ? undefined : voiceOf(lang);
  if (!voice) return pause(SHORTEST_WORD);
  const utterance = new SpeechSynthesisUtterance(text);
  Object.assign(utterance, { voice, lang: voice.lang, rate: 0.9 });
  const over = new Promise((resolve) => {
    utterance.addEventListener("end", resolve);
    utterance.addEventListener("error", resolve);
  });
  speechSynthesis.speak(utterance);
  await Promise.all([Promise.race([over, pause(LONGEST_WORD)]), pause(SHORTEST_WORD)]);
}

function voiceOf(lang) {
  const voices = globalThis.speechSynthesis?.getVoices() ?? [];
  const speaking = voices.filter((voice) => voice.lang.toLowerCase().startsWith(lang));
  return speaking.find((voice) => voice.localService) ?? speaking[0];
}
