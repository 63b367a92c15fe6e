// The table of adapters: searched, sorted and cut by the server, row by row kept where it is on the page.

import { ago, bytes, el, NONE, number, part, say, seconds } from "./dom.js";
import { Detail } from "./detail.js";
import { Loading } from "./loading.js";

export const PAGE = 15;
const COLUMNS = [
  { name: "name", title: "Adapter" },
  { name: "tier", title: "Where" },
  { name: "state", title: "State", narrow: "wide-only" },
  { name: "peft_type", title: "Type", narrow: "wide-only" },
  { name: "rank", title: "Rank", number: true, narrow: "wide-only" },
  { name: "bytes", title: "Size", number: true, narrow: "narrow-out" },
  { name: "requests", title: "Requests", number: true, narrow: "narrow-out" },
  { name: "tokens", title: "Tokens", number: true },
  { name: "ttft_p50_s", title: "TTFT p50", number: true, narrow: "narrow-out" },
  { name: "ttft_p95_s", title: "TTFT p95", number: true, narrow: "narrow-out" },
  { name: "last_used_s", title: "Used", number: true },
];
// What is looked at first is the most of it; names, and how long ago, begin at the smallest.
const RISING = new Set(["name", "tier", "state", "peft_type", "last_used_s"]);
const TIERS = { device: "Device", host: "Host", store: "Store" };

export class Adapters {
  constructor(root, refresh) {
    this.refresh = refresh;
    this.wanted = { search: "", sort: "name", order: "asc", offset: 0 };
    this.rows = new Map();
    this.body = part(root, "rows");
    this.root = root;
    this.detail = new Detail(root, refresh);
    this.loading = new Loading(root, refresh);
    this.headings = new Map(COLUMNS.map((column) => [column.name, this.heading(column)]));
    part(root, "head").append(...this.headings.values());
    this.markSorted();
    part(root, "load").addEventListener("click", () => this.loading.open());
    part(root, "back").addEventListener("click", () => this.turn(-PAGE));
    part(root, "next").addEventListener("click", () => this.turn(PAGE));
    const search = part(root, "search");
    let pause = null;
    search.addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(() => this.want({ search: search.value.trim().slice(0, 256), offset: 0 }), 150);
    });
  }

  /** What to ask the server for. */
  get query() {
    return { ...this.wanted, limit: PAGE };
  }

  show({ adapters, caller }) {
    part(this.root, "load").hidden = !caller.may.manage;
    this.loading.caller = this.detail.caller = caller;
    const { found, total, offset, data } = adapters;
    if (offset && !data.length) return void this.want({ offset: 0 });
    say(part(this.root, "count"), found === total ? number(total) : `${number(found)} of ${number(total)}`);
    say(part(this.root, "found"), this.wanted.search ? `${number(found)} of ${number(total)} adapters` : "");
    this.showRows(data);
    const empty = part(this.root, "empty");
    empty.hidden = data.length > 0;
    say(empty, total ? "No adapter's name holds that." : "No adapters yet. Load one, or put it into the adapter folder.");
    part(this.root, "pages").hidden = found <= PAGE;
    part(this.root, "back").disabled = offset === 0;
    part(this.root, "next").disabled = offset + data.length >= found;
    say(part(this.root, "page-words"), `${offset + 1} to ${offset + data.length} of ${number(found)}`);
    this.detail.update(data);
  }

  showRows(data) {
    const wanted = new Set(data.map((adapter) => adapter.name));
    for (const [name, row] of this.rows) {
      if (wanted.has(name)) continue;
      row.line.remove();
      this.rows.delete(name);
    }
    for (const [place, adapter] of data.entries()) {
      if (!this.rows.has(adapter.name)) this.rows.set(adapter.name, this.makeRow(adapter.name));
      const row = this.rows.get(adapter.name);
      row.adapter = adapter;
      fill(row, adapter);
      if (this.body.children[place] !== row.line) this.body.insertBefore(row.line, this.body.children[place] ?? null);
    }
  }

  makeRow(name) {
    const row = { adapter: null, cells: {} };
    const opens = el("button", { type: "button", className: "name" }, ...breakable(name));
    opens.addEventListener("click", () => this.detail.open(row.adapter));
    row.pin = el("span", { className: "pin", textContent: "pinned" });
    row.trouble = el("span", { className: "trouble" });
    row.where = el("span", { className: "words" });
    row.tier = el("span", { className: "tier" }, row.where);
    row.live = el("span", { className: "live" });
    row.count = el("span");
    const cells = COLUMNS.map((column) => {
      const classes = [column.number ? "number" : "", column.narrow ?? ""].join(" ").trim();
      const cell = column.name === "name" ? el("th", { scope: "row" }) : el("td", { className: classes });
      row.cells[column.name] = cell;
      return cell;
    });
    row.cells.name.append(opens, row.pin, row.trouble);
    row.cells.tier.append(row.tier);
    row.cells.requests.append(row.live, row.count);
    row.line = el("tr", {}, ...cells);
    return row;
  }

  heading(column) {
    const button = el("button", { type: "button", className: "sort", textContent: column.title });
    button.addEventListener("click", () => this.sortBy(column.name));
    const classes = [column.number ? "number" : "", column.narrow ?? ""].join(" ").trim();
    return el("th", { scope: "col", className: classes }, button);
  }

  sortBy(name) {
    const first = RISING.has(name) ? "asc" : "desc";
    const other = first === "asc" ? "desc" : "asc";
    const order = this.wanted.sort === name && this.wanted.order === first ? other : first;
    this.want({ sort: name, order, offset: 0 });
  }

  markSorted() {
    for (const [name, heading] of this.headings) {
      if (name !== this.wanted.sort) heading.removeAttribute("aria-sort");
      else heading.setAttribute("aria-sort", this.wanted.order === "asc" ? "ascending" : "descending");
    }
  }

  turn(by) {
    this.want({ offset: Math.max(0, this.wanted.offset + by) });
  }

  want(changes) {
    Object.assign(this.wanted, changes);
    this.markSorted();
    this.refresh();
  }
}

/** A name in pieces that a line may end between. */
const breakable = (name) => name.split(/(?<=[/_-])/).flatMap((piece, place) => (place ? [el("wbr"), piece] : [piece]));

function fill(row, adapter) {
  const { cells } = row;
  const quiet = adapter.state === "ready" || adapter.state === "registered";
  row.pin.hidden = !adapter.pinned;
  row.trouble.hidden = quiet && !adapter.error;
  say(row.trouble, adapter.error?.message ?? adapter.state);
  row.tier.dataset.tier = adapter.tier ?? "none";
  say(row.where, TIERS[adapter.tier] ?? adapter.state);
  say(cells.state, adapter.state);
  say(cells.peft_type, adapter.peft_type ?? NONE);
  say(cells.rank, number(adapter.rank));
  say(cells.bytes, bytes(adapter.bytes).join(" "));
  say(row.live, adapter.running ? `${number(adapter.running)} running` : "");
  row.live.hidden = !adapter.running;
  say(row.count, number(adapter.requests));
  say(cells.tokens, number(adapter.tokens));
  say(cells.ttft_p50_s, seconds(adapter.ttft_p50_s));
  say(cells.ttft_p95_s, seconds(adapter.ttft_p95_s));
  say(cells.last_used_s, ago(adapter.last_used_s));
}
