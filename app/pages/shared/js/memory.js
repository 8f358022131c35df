// What the browser remembers of this page: language, colours, mute, the pending verification. It works without, too.

export function recall(name) {
  try {
    return localStorage.getItem(`verify.${name}`);
  } catch {
    return null; // storage is switched off
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`verify.${name}`, value);
  } catch {
    // storage is switched off: it lasts as long as the page
  }
}
