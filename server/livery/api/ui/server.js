// The way to the server: beside this page, whatever prefix a proxy shows both under.

const STORED = "livery-key";
const PATIENCE_MS = 10000;
const LONGEST_MS = 300_000; // that a Retry-After is waited for
let forgetful = null; // the key, where the browser keeps nothing

/** The server refused; `code` is for programs, the message for people. `waitMs` is how long it wants to be left alone. */
export class Refused extends Error {
  constructor(status, error, retryAfter = null) {
    super(error?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.code = error?.code ?? null;
    this.waitMs = Math.min(LONGEST_MS, 1000 * (Number(retryAfter) || 0));
  }
}

/** What went wrong with an asking, for people; what is no failure of an asking is thrown again. */
export function told(error, next = "try again.") {
  if (error instanceof Refused) return error.message;
  if (error instanceof SyntaxError) return `What answers here isn't Livery, but a page, such as a proxy's sign-in; ${next}`;
  if (error instanceof TypeError || error.name === "TimeoutError") return `The server doesn't answer; ${next}`;
  throw error;
}

export function key() {
  try {
    return sessionStorage.getItem(STORED) ?? forgetful;
  } catch {
    return forgetful;
  }
}

/** Whether a header can carry it, which takes no other letters. */
export const carries = (value) => /^[\x20-\x7e]*$/.test(value);

export function setKey(value) {
  forgetful = value;
  try {
    if (value) sessionStorage.setItem(STORED, value);
    else sessionStorage.removeItem(STORED);
  } catch {
    // what a browser in private mode doesn't keep lasts as long as the page
  }
}

/** Where a path of the API is. */
export const at = (path) => new URL(`../${path}`, document.baseURI).href;

/** A name in a path: its slashes stay. */
export const named = (name) => name.split("/").map(encodeURIComponent).join("/");

/** An answer that is a success. Raises Refused, or TypeError where the server can't be reached. */
export async function send(method, path, { body, files, signal } = {}) {
  const headers = key() ? { authorization: `Bearer ${key()}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const answer = await fetch(at(path), {
    method,
    headers,
    signal,
    body: files ?? (body === undefined ? undefined : JSON.stringify(body)),
    cache: "no-store",
    credentials: "omit",
  });
  if (!answer.ok) {
    const error = (await answer.json().catch(() => null))?.error;
    throw new Refused(answer.status, error, answer.headers.get("retry-after"));
  }
  return answer;
}

export const json = async (method, path, more) => (await send(method, path, more)).json();

/** How everything is; whoever asks may call it off by `signal`. */
export function status(query, signal) {
  const wanted = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== ""));
  return json("GET", `v1/status?${wanted}`, { signal: AbortSignal.any([AbortSignal.timeout(PATIENCE_MS), ...(signal ? [signal] : [])]) });
}

/** The data of a stream's events, as they come, up to its end. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Refused(answer.status, event.error);
      yield event;
    }
  }
}
