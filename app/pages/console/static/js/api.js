// Sends requests to the API with the admin key, which is kept for the session of this tab only.

const KEY = "verify.admin_key";
let forbidden = () => {};

/** Call a function whenever the service asks for another key. */
export const onForbidden = (listener) => { forbidden = listener; };
export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key.trim());
export const dropKey = () => sessionStorage.removeItem(KEY);

/** A request that failed: `status` is 0 if no answer came, `problem` is the API's own (RFC 9457), if there is one. */
export class Failure extends Error {
  constructor(status, problem = {}) {
    super(problem.detail ?? `status ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

/** Send a request and return the body of its answer. Throws Failure; `accepted` are statuses that are none. */
async function send(method, path, { body, accepted = [] } = {}) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  // The path is taken from where the page is, for a proxy may have put the service under a prefix.
  const response = await fetch(`.${path}`, { method, headers, body: body && JSON.stringify(body) }).catch(() => {
    throw new Failure(0);
  });
  const answer = response.status === 204 ? null : await response.json().catch(() => ({}));
  if (response.ok || accepted.includes(response.status)) return answer;
  if (response.status === 401) forbidden();
  throw new Failure(response.status, answer ?? {});
}

export const get = (path, options) => send("GET", path, options);
export const post = (path, body) => send("POST", path, { body });
export const remove = (path) => send("DELETE", path);
