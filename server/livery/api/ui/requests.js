// The last requests: how they went, never what they said.

import { el, number, part, say, seconds, span } from "./dom.js";

export class Requests {
  constructor(root) {
    this.body = part(root, "requests");
    this.nothing = part(root, "no-requests");
    this.rows = new Map(); // id and place in time -> cells that change
  }

  show(requests) {
    this.nothing.hidden = requests.length > 0;
    const seen = new Set();
    let before = null;
    for (const [place, request] of requests.entries()) {
      const name = `${request.id} ${request.route} ${request.duration_s}`;
      if (seen.has(name)) continue;
      seen.add(name);
      let row = this.rows.get(name);
      if (!row) {
        row = make(request);
        this.rows.set(name, row);
        if (before) before.after(row.line);
        else this.body.prepend(row.line);
      }
      before = row.line;
      say(row.age, span(request.age_s));
      if (place > 99) break;
    }
    for (const [name, row] of this.rows) {
      if (seen.has(name)) continue;
      row.line.remove();
      this.rows.delete(name);
    }
  }
}

function make(request) {
  const age = el("td", { className: "quiet" });
  const good = request.status < 400 && request.outcome !== "error";
  const stopped = request.status === 499 || request.outcome === "abort";
  const line = el(
    "tr",
    {},
    age,
    el("td", {}, request.model ?? "–"),
    el("td", { className: good || stopped ? "" : "status-bad" }, stopped ? "Stopped" : good ? "Finished" : `Failed, ${request.status}`),
    el("td", { className: "number narrow-out" }, number(request.prompt_tokens)),
    el("td", { className: "number" }, number(request.generated_tokens)),
    el("td", { className: "number narrow-out" }, seconds(request.ttft_s)),
    el("td", { className: "number" }, seconds(request.duration_s)),
    el("td", { className: "wide-only" }, el("code", {}, request.id)),
  );
  return { line, age };
}
