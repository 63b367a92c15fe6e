// One adapter: how it stands, its versions, what it changes, and the verbs for who may use them.

import { ago, bytes, confirmed, el, kind, notice, number, part, seconds } from "./dom.js";
import { json, named, Refused, status, told } from "./server.js";

const AT_MOST = 100; // names that hold this one, among which it is looked for

export class Detail {
  constructor(root, refresh) {
    this.refresh = refresh;
    this.dialog = part(root, "detail");
    this.body = part(root, "detail-body");
    this.title = this.dialog.querySelector("h2");
    this.asking = part(root, "confirm");
    this.caller = null;
    this.adapter = null;
    this.unread = false; // its versions, as the server didn't answer
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

  /** The table was read anew: the adapter stands in it, or on another page of it. */
  async update(rows) {
    const name = this.adapter?.name;
    if (!name) return;
    if (this.unread) await this.read();
    const found = rows.find((row) => row.name === name) ?? (await elsewhere(name));
    if (!found || this.adapter?.name !== name) return;
    this.adapter = found;
    this.body.querySelector("[data-facts]")?.replaceWith(this.facts());
  }

  /** Read its versions and its report, where the caller may. What is done to it goes by what was read here. */
  async read() {
    const { name, own } = this.adapter;
    const [above, below] = [[], []];
    this.unread = false;
    if (this.caller.may.manage && own) {
      try {
        const [history, whole] = await Promise.all([
          json("GET", `v1/adapters/${named(name)}/versions`),
          json("GET", `v1/adapters/${named(name)}`),
        ]);
        if (this.adapter?.name !== name) return;
        const { generation, pinned, state } = whole;
        this.adapter = { ...this.adapter, generation, pinned, state };
        above.push(this.verbs(history.data));
        below.push(this.versions(history.data), changes(whole.coverage ?? {}));
      } catch (error) {
        below.push(el("p", { className: "quiet", textContent: told(error) }));
        this.unread = this.adapter?.name === name && !(error instanceof Refused);
      }
    }
    if (this.adapter?.name === name) this.body.replaceChildren(...[...above, this.facts(), ...below].filter(Boolean));
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
      return void notice(told(error));
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

/** An adapter's line of the table, on whatever page it is; undefined where that can't be told. */
async function elsewhere(name) {
  const found = await status({ search: name.slice(0, 256), limit: AT_MOST }).catch(() => null);
  return found?.adapters.data.find((row) => row.name === name);
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
