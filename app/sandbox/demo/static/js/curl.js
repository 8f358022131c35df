// Writes a request down as a curl command that does the same when it is pasted into a shell.

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The command for an exchange; a key is shown as a variable, so that it can be passed around. */
export function asCurl({ method, path, headers = {}, body }) {
  const parts = [`curl -sS ${method === "GET" ? "" : `-X ${method} `}${quote(new URL(`.${path}`, document.baseURI).href)}`];
  for (const [name, value] of Object.entries(headers)) {
    parts.push(name === "Authorization" ? '-H "Authorization: Bearer $API_KEY"' : `-H ${quote(`${name}: ${value}`)}`);
  }
  if (body) parts.push(`-d ${quote(JSON.stringify(body))}`);
  return parts.join(" \\\n  ");
}
