// The page: a login where the server asks for a key and nothing else; the console, asked for anew every two seconds.

import { Adapters, PAGE } from "./adapters.js";
import { notice, part, say } from "./dom.js";
import { showOverview } from "./overview.js";
import { Requests } from "./requests.js";
import { carries, key, Refused, setKey, status, told } from "./server.js";
import { TryIt } from "./tryit.js";

const EVERY_MS = 2000;
const root = document.getElementById("root");
let shown = null; // the parts of the console, null while there is a login or nothing
let timer = null;
let turn = 0; // which asking counts: an older one's answer is passed over
let asking = new AbortController();

const template = (name) => document.getElementById(name).content.cloneNode(true);

function showLogin(words) {
  close();
  root.replaceChildren(template("login"));
  const form = root.querySelector("form");
  const field = root.querySelector("#key");
  root.querySelector("#key-error").textContent = words;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = field.value.trim();
    if (!carries(given)) {
      root.querySelector("#key-error").textContent = "This key has letters that no HTTP header can carry; copy it again.";
      return;
    }
    setKey(given);
    refresh();
  });
  field.focus();
}

function showConsole() {
  root.replaceChildren(template("console"));
  const leave = part(root, "leave");
  leave.hidden = !key();
  leave.addEventListener("click", () => {
    setKey(null);
    showLogin("");
  });
  shown = { adapters: new Adapters(root, refresh), tryIt: new TryIt(root), requests: new Requests(root) };
}

/** Whatever is still on its way is no longer wanted. */
function close() {
  shown?.tryIt.stop();
  shown = null;
  turn += 1;
  asking.abort();
  clearTimeout(timer);
}

/** Ask how everything is, and again in a while unless nobody looks. */
async function refresh() {
  const mine = ++turn;
  clearTimeout(timer);
  asking.abort();
  asking = new AbortController();
  let pause = EVERY_MS;
  try {
    const found = await status(shown ? shown.adapters.query : { limit: PAGE }, asking.signal);
    if (mine === turn) show(found);
  } catch (error) {
    if (mine === turn) pause = failed(error);
  } finally {
    if (mine === turn && !document.hidden) timer = setTimeout(refresh, pause);
  }
}

function show(found) {
  if (!shown) showConsole();
  showOverview(root, found);
  shown.requests.show(found.requests);
  shown.tryIt.show(found);
  pulse(found.engine.answers ? "live" : "lost", found.engine.answers ? "Live" : "The engine doesn't answer");
  shown.adapters.show(found); // which may want another page of them
}

/** Say what went wrong. When to ask again, in milliseconds: a login asks no more until there is a key. */
function failed(error) {
  if (error instanceof Refused && [401, 403].includes(error.status)) {
    const had = key();
    setKey(null);
    showLogin(had ? error.message : "");
    return EVERY_MS;
  }
  if (shown) pulse("lost", "Something went wrong; trying again");
  const words = told(error, "trying again");
  if (shown) pulse("lost", words);
  else notice(words);
  return Math.max(EVERY_MS, error.waitMs ?? 0);
}

function pulse(state, words) {
  part(root, "pulse").dataset.state = state;
  say(part(root, "pulse-words"), words);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(timer);
  else if (shown || !root.querySelector("#key")) refresh();
});
refresh();
