// Elements and words. Whatever comes from the server becomes text, never markup.

/** An element: `properties` are set as such, `data` and `aria` as attributes, children are elements or text. */
export function el(tag, properties = {}, ...children) {
  const { data = {}, aria = {}, on = {}, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data)) made.dataset[name] = value;
  for (const [name, value] of Object.entries(aria)) made.setAttribute(name === "role" ? name : `aria-${name}`, value);
  for (const [name, heard] of Object.entries(on)) made.addEventListener(name, heard);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The element with a data attribute of this name. */
export const part = (root, name) => root.querySelector(`[data-${name}]`);

/** Write text only where it differs, so that nothing moves and no reader speaks without need. */
export function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

export function notice(words) {
  const shown = el("p", { className: "notice", textContent: words });
  document.getElementById("notices").append(shown);
  setTimeout(() => shown.remove(), 6000);
}

const whole = new Intl.NumberFormat("en");
export const NONE = "–";

export function number(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 10000) return whole.format(Math.round(value));
  return value < 1e6 ? `${(value / 1e3).toFixed(value < 1e5 ? 1 : 0)}k` : `${(value / 1e6).toFixed(1)}M`;
}

/** Bytes as [number, unit]. */
export function bytes(value) {
  if (value === null || value === undefined) return [NONE, ""];
  const units = ["B", "KB", "MB", "GB", "TB"];
  let place = 0;
  while (value >= 1000 && place < units.length - 1) [value, place] = [value / 1000, place + 1];
  return [place && value < 100 ? value.toFixed(1) : String(Math.round(value)), units[place]];
}

export function seconds(value) {
  if (value === null || value === undefined) return NONE;
  if (value < 1) return `${value < 0.01 ? (value * 1e3).toFixed(1) : Math.round(value * 1e3)} ms`;
  return value < 100 ? `${value.toFixed(value < 10 ? 2 : 1)} s` : span(value);
}

/** A stretch of time in one unit. */
export function span(value) {
  if (value < 60) return `${Math.floor(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min`;
  return value < 86400 * 2 ? `${Math.floor(value / 3600)} h` : `${Math.floor(value / 86400)} days`;
}

export function ago(value) {
  if (value === null || value === undefined) return "never";
  return value < 2 ? "just now" : `${span(value)} ago`;
}

/** What kind of adapter it is, with the rank where it has one. */
export function kind(adapter) {
  if (!adapter.peft_type) return NONE;
  return adapter.rank ? `${adapter.peft_type} · rank ${adapter.rank}` : adapter.peft_type;
}

/** Ask before what can't be undone. Resolves to whether it was agreed to. */
export function confirmed(dialog, title, words, verb) {
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = words;
  const yes = part(dialog, "yes");
  yes.textContent = verb;
  dialog.returnValue = "";
  yes.onclick = () => dialog.close("yes");
  part(dialog, "no").onclick = () => dialog.close("no");
  dialog.showModal();
  part(dialog, "no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
