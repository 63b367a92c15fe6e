// The tiles: throughput with its last minute, requests, KV cache, memory for adapters.

import { bytes, number, part, say, seconds, span } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 96;

let before = null; // the last status: what steps take is worked out from two

export function showOverview(root, found) {
  const { base, engine, throughput, load, memory, caller } = found;
  showWhose(root, caller);
  say(part(root, "base-name"), base.name);
  const facts = [engine.device, engine.dtype, engine.threads ? `${engine.threads} thread${engine.threads > 1 ? "s" : ""}` : null];
  say(part(root, "base-facts"), `${facts.filter((fact) => fact && fact !== "none").join(" · ")} · up ${span(found.server.uptime_s)}`);
  document.title = `${number(throughput.generated_per_s)} tok/s · Livery`;
  say(part(root, "rate"), number(throughput.generated_per_s));
  say(part(root, "prompt-rate"), `${number(throughput.prompt_per_s)} prompt tokens/s`);
  draw(root, throughput.generated_by_second);
  say(part(root, "running"), number(load.running ?? load.open));
  say(part(root, "waiting"), number(load.waiting));
  say(part(root, "steps"), steps(found));
  before = found;
  if (caller.sees === "all") showMemory(root, memory);
}

/** A tenant sees what it does itself; what all share, and fill together, is the operator's to see. */
function showWhose(root, caller) {
  const own = caller.sees === "tenant";
  const note = part(root, "whose");
  note.hidden = !own;
  if (own) say(note, `What tenant ${caller.tenant} does. The whole server's figures and its memory are for its operator.`);
  for (const tile of root.querySelectorAll("[data-everybodys]")) tile.hidden = own;
}

/** How many steps there were in a second since the last status. */
function steps(found) {
  if (found.load.steps === null || !before || before.load.steps === null) return "";
  const passed = found.server.uptime_s - before.server.uptime_s;
  const done = found.load.steps - before.load.steps;
  const spent = found.load.step_seconds - before.load.step_seconds;
  if (passed <= 0 || done <= 0) return "No steps right now";
  return `${number(done / passed)} steps/s${spent > 0 ? `, ${seconds(spent / done)} each` : ""}`;
}

function showMemory(root, memory) {
  if (!memory) {
    for (const name of ["kv", "memory"]) say(part(root, name), "–");
    for (const name of ["kv-words", "memory-words"]) say(part(root, name), "The engine doesn't answer");
    return;
  }
  const { kv, device, host } = memory;
  const used = share(kv.used_tokens, kv.total_tokens);
  say(part(root, "kv"), used < 1 && used > 0 ? used.toFixed(1) : Math.round(used));
  fill(part(root, "kv-bar"), used, share(Math.min(kv.total_tokens, kv.used_tokens + kv.cached_tokens), kv.total_tokens));
  say(part(root, "kv-words"), `${number(kv.cached_tokens)} of ${number(kv.total_tokens)} tokens remembered`);
  const [size, unit] = bytes(device.used_bytes);
  say(part(root, "memory"), size);
  say(part(root, "memory-unit"), `${unit} of ${bytes(device.limit_bytes).join(" ")}`);
  fill(part(root, "device-bar"), share(device.used_bytes, device.limit_bytes));
  const beside = host.adapters ? `, ${number(host.adapters)} in host memory (${bytes(host.used_bytes).join(" ")})` : "";
  say(part(root, "memory-words"), `${number(device.adapters)} on the device${beside}`);
}

const share = (value, whole) => (whole ? Math.min(100, (100 * value) / whole) : 0);

function fill(bar, percent, soft = percent) {
  bar.setAttribute("aria-valuemin", "0");
  bar.setAttribute("aria-valuemax", "100");
  bar.setAttribute("aria-valuenow", percent.toFixed(0));
  bar.querySelector(".full").style.width = `${percent}%`;
  const behind = bar.querySelector(".soft");
  if (behind) behind.style.width = `${soft}%`;
}

/** A line over the seconds, from zero up to the highest of them. */
function draw(root, values) {
  const most = Math.max(1, ...values) * 1.08;
  const points = values.map((value, place) => {
    const across = (place / (values.length - 1)) * WIDTH;
    return `${across.toFixed(1)},${(HEIGHT - 2 - (value / most) * (HEIGHT - 6)).toFixed(1)}`;
  });
  part(root, "line").setAttribute("d", `M${points.join("L")}`);
  part(root, "area").setAttribute("d", `M0,${HEIGHT}L${points.join("L")}L${WIDTH},${HEIGHT}Z`);
}
