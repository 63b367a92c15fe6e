// The page: a login where the server asks for a key and nothing else; the console, asked for anew every two seconds.

import { Adapters, PAGE } from "./adapters.js";
import { notice, part, say } from "./dom.js";
import { showOverview } from "./overview.js";
import { Requests } from "./requests.js";
import { key, Refused, setKey, status } from "./server.js";
import { TryIt } from "./tryit.js";

const EVERY_MS = 2000;
const root = document.getElementById("root");
let shown = null; // the parts of the console, null while there is a login or nothing
let timer = null;
let turn = 0; // which asking counts: an older one's answer is passed over

const template = (name) => document.getElementById(name).content.cloneNode(true);

function showLogin(words) {
  close();
  root.replaceChildren(template("login"));
  const form = root.querySelector("form");
  const field = root.querySelector("#key");
  root.querySelector("#key-error").textContent = words;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(field.value.trim());
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

function close() {
  shown?.tryIt.stop();
  shown = null;
  clearTimeout(timer);
}

/** Ask how everything is, and again in a while unless nobody looks. */
async function refresh() {
  const mine = ++turn;
  clearTimeout(timer);
  try {
    const found = await status(shown ? shown.adapters.query : { limit: PAGE });
    if (mine !== turn) return;
    if (!shown) showConsole();
    showOverview(root, found);
    shown.adapters.show(found);
    shown.requests.show(found.requests);
    shown.tryIt.show(found);
    pulse(found.engine.answers ? "live" : "lost", found.engine.answers ? "Live" : "The engine doesn't answer");
  } catch (error) {
    if (mine !== turn) return;
    if (!failed(error)) return;
  }
  if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
}

/** Say what went wrong. Whether to ask again. */
function failed(error) {
  if (error instanceof Refused && [401, 403].includes(error.status)) {
    const had = key();
    setKey(null);
    showLogin(had ? error.message : "");
    return false;
  }
  if (!(error instanceof Refused) && !(error instanceof TypeError) && error.name !== "TimeoutError") throw error;
  if (shown) pulse("lost", "The server doesn't answer; trying again");
  else notice("The server doesn't answer; trying again.");
  return true;
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
