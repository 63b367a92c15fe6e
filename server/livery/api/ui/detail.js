// One adapter: how it stands, its versions, what it changes, and the verbs for who may use them.

import { ago, bytes, confirmed, el, kind, notice, number, part, seconds } from "./dom.js";
import { json, named, Refused } from "./server.js";

export class Detail {
  constructor(root, refresh) {
    this.refresh = refresh;
    this.dialog = part(root, "detail");
    this.body = part(root, "detail-body");
    this.title = this.dialog.querySelector("h2");
    this.asking = part(root, "confirm");
    this.caller = null;
    this.adapter = null;
    part(this.dialog, "close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("close", () => (this.adapter = null));
  }

  async open(adapter) {
    this.adapter = adapter;
    this.title.textContent = adapter.name;
    this.body.replaceChildren(this.facts());
    this.dialog.showModal();
    this.title.focus();
    await this.read();
  }

  /** The table was read anew. */
  update(rows) {
    const found = this.adapter && rows.find((row) => row.name === this.adapter.name);
    if (!found) return;
    this.adapter = found;
    this.body.querySelector("[data-facts]")?.replaceWith(this.facts());
  }

  /** Read its versions and its report, where the caller may. */
  async read() {
    const name = this.adapter.name;
    const sections = [this.facts()];
    if (this.caller.may.manage && this.adapter.own) {
      try {
        const [history, whole] = await Promise.all([
          json("GET", `v1/adapters/${named(name)}/versions`),
          json("GET", `v1/adapters/${named(name)}`),
        ]);
        sections.unshift(this.verbs(history.data));
        sections.push(this.versions(history.data), changes(whole.coverage ?? {}));
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        sections.push(el("p", { className: "quiet", textContent: error.message }));
      }
    }
    if (this.adapter?.name === name) this.body.replaceChildren(...sections.filter(Boolean));
  }

  facts() {
    const adapter = this.adapter;
    const rows = [
      ["State", adapter.state],
      ["Where", { device: "Device memory", host: "Host memory", store: "On disk" }[adapter.tier] ?? "–"],
      ["Type", kind(adapter)],
      ["Size", bytes(adapter.bytes).join(" ")],
      ["Requests", `${number(adapter.requests)}, ${number(adapter.running)} running`],
      ["Tokens", `${number(adapter.prompt_tokens)} prompt, ${number(adapter.generated_tokens)} answer`],
      ["First token", adapter.ttft_p50_s === null ? "–" : `half within ${seconds(adapter.ttft_p50_s)}, 95 % within ${seconds(adapter.ttft_p95_s)}`],
      ["Last used", ago(adapter.last_used_s)],
      ["Version", adapter.version === null ? "–" : `${adapter.version} (${adapter.digest.slice(0, 12)})`],
    ];
    const list = el("dl", { className: "facts" });
    for (const [name, value] of rows) list.append(el("dt", {}, name), el("dd", {}, value));
    const section = el("section", { data: { facts: "" }, aria: { label: "Facts" } }, list);
    if (adapter.error) section.prepend(el("p", { className: "error", textContent: adapter.error.message }));
    return section;
  }

  verbs(history) {
    const { name, pinned, generation } = this.adapter;
    const path = `v1/adapters/${named(name)}`;
    const acts = el("div", { className: "acts" });
    const add = (words, act, className = "") =>
      acts.append(el("button", { type: "button", className, textContent: words, on: { click: act } }));
    if (this.caller.may.pin) {
      const verb = pinned ? "unpin" : "pin";
      add(pinned ? "Unpin" : "Pin", () => this.act(() => json("POST", `${path}/${verb}`), pinned ? "Unpinned" : "Pinned"));
    }
    add("Load into memory", () => this.act(() => json("POST", `${path}/prefetch`), "Loaded"));
    if (history.length > 1) {
      const body = { expected_generation: generation };
      add("Roll back", () => this.act(() => json("POST", `${path}/rollback`, { body }), "Rolled back"));
    }
    add("Unload", () => this.unload(path), "danger");
    return el("section", { aria: { label: "Actions" } }, acts);
  }

  async unload(path) {
    const { name } = this.adapter;
    const words = "Its name stops taking requests and its versions leave the disk once nobody uses them. Requests under way finish.";
    if (!(await confirmed(this.asking, `Unload ${name}?`, words, "Unload"))) return;
    await this.act(() => json("DELETE", path), "Unloaded", { closes: true });
  }

  /** Do it, say so, and look again. */
  async act(verb, done, { closes = false } = {}) {
    const { name } = this.adapter;
    try {
      await verb();
      notice(`${done}: ${name}`);
    } catch (error) {
      if (!(error instanceof Refused) && !(error instanceof TypeError)) throw error;
      return void notice(error instanceof Refused ? error.message : "The server doesn't answer; try again.");
    }
    if (closes) this.dialog.close();
    await this.refresh();
    if (closes || !this.adapter) return;
    await this.read();
    this.title.focus();
  }

  versions(history) {
    const list = el("ol", { className: "versions" });
    for (const version of history) {
      const words = `${version.digest.slice(0, 12)} · ${bytes(version.bytes).join(" ")} · ${new Date(version.created * 1000).toLocaleString()}`;
      const facts = el("div", { className: "grow" }, el("span", {}, `Version ${version.version}`), el("span", { className: "hint" }, words));
      const body = { version: version.version };
      const activate = () =>
        this.act(() => json("POST", `v1/adapters/${named(this.adapter.name)}/activate`, { body }), `Version ${version.version} is active`);
      const right = version.active
        ? el("span", { className: "tag", textContent: "Active" })
        : el("button", { type: "button", textContent: "Activate", aria: { label: `Activate version ${version.version}` }, on: { click: activate } });
      list.append(el("li", {}, facts, right));
    }
    return el("section", {}, el("h3", {}, "Versions"), list);
  }
}

/** What an adapter changes of the base, from its coverage report. */
function changes(coverage) {
  const modules = coverage.modules_by_path ?? {};
  const paths = Array.isArray(modules) ? modules : Object.keys(modules);
  const kinds = new Map();
  for (const path of paths) {
    const last = String(path.path ?? path).split(".").pop();
    kinds.set(last, (kinds.get(last) ?? 0) + 1);
  }
  if (!kinds.size) return null;
  const items = [...kinds].map(([name, count]) => el("li", {}, `${name} × ${count}`));
  return el("section", {}, el("h3", {}, "Changes these modules"), el("ul", { className: "modules" }, ...items));
}
