// One prompt to two adapters, streaming side by side, with the code that asks the same.

import { el, notice, number, part, say, seconds } from "./dom.js";
import { curl, python } from "./snippets.js";
import { at, events, send, status, told } from "./server.js";

export class TryIt {
  constructor(root) {
    this.root = root;
    this.form = part(root, "try");
    this.models = root.querySelector("#models");
    this.panes = ["Left", "Right"].map((side) => new Pane(side, () => this.suggest(), () => this.body()));
    part(root, "panes").append(...this.panes.map((pane) => pane.element));
    this.running = null;
    this.base = "";
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    this.form.addEventListener("input", () => this.panes.forEach((pane) => pane.showCode()));
    part(root, "stop").addEventListener("click", () => this.stop());
  }

  /** Fill in what to compare, once: the base, and the first adapter there is. */
  show({ base, adapters }) {
    if (this.base) return;
    this.base = base.name;
    const first = adapters.data.find((adapter) => adapter.state === "ready");
    this.panes[0].model = base.name;
    this.panes[1].model = first?.name ?? base.name;
    this.offer([base.name, ...adapters.data.map((adapter) => adapter.name)]);
  }

  offer(names) {
    this.models.replaceChildren(...names.map((name) => el("option", { value: name })));
  }

  /** Names that hold what is being typed. */
  async suggest() {
    const typed = document.activeElement?.value ?? "";
    try {
      const found = await status({ search: typed === this.base ? "" : typed.slice(0, 256), limit: 20 });
      this.offer([this.base, ...found.adapters.data.map((adapter) => adapter.name)]);
    } catch {
      // suggestions are a help; whatever is typed can be asked for without them
    }
  }

  /** What is asked, all but the model. */
  body() {
    const prompt = this.form.querySelector("#prompt").value;
    const chat = part(this.root, "kind").value === "chat";
    return {
      ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      max_tokens: Number(part(this.root, "tokens").value) || 64,
      temperature: Number(part(this.root, "temperature").value) || 0,
    };
  }

  async run() {
    this.stop();
    const stop = new AbortController();
    this.running = stop;
    this.busy(true);
    await Promise.all(this.panes.map((pane) => pane.run(this.body(), stop.signal)));
    if (this.running === stop) this.busy(false);
  }

  stop() {
    this.running?.abort();
  }

  busy(is) {
    part(this.root, "stop").disabled = !is;
    part(this.root, "run").textContent = is ? "Run again" : "Run both";
  }
}

class Pane {
  constructor(side, suggest, body) {
    this.body = body;
    this.latest = null; // the signal of the run that the pane shows
    this.input = el("input", { value: "", required: true, autocomplete: "off", spellcheck: false });
    this.input.setAttribute("list", "models");
    let pause = null;
    this.input.addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(suggest, 200);
    });
    this.answer = el("div", { className: "answer", tabIndex: 0, aria: { role: "region", label: `${side} answer` } });
    this.foot = el("p", { className: "foot", aria: { role: "status" } });
    this.code = ["curl", "Python"].map((name) => snippet(name));
    this.element = el(
      "div",
      { className: "pane" },
      el("label", {}, `${side} model`, this.input),
      this.answer,
      this.foot,
      el("details", { on: { toggle: () => this.showCode() } }, el("summary", {}, "The same from a program"), ...this.code.map((one) => one.element)),
    );
  }

  set model(name) {
    this.input.value = name;
  }

  async run(body, signal) {
    this.latest = signal;
    const began = performance.now();
    let first = null;
    let tokens = 0;
    this.answer.textContent = "";
    this.answer.dataset.busy = "yes";
    say(this.foot, "Waiting for the first token");
    try {
      const asked = { model: this.input.value.trim(), ...body, stream: true, stream_options: { include_usage: true } };
      const path = body.messages ? "v1/chat/completions" : "v1/completions";
      for await (const event of events(await send("POST", path, { body: asked, signal }))) {
        if (this.latest !== signal) return;
        const choice = event.choices?.[0];
        const text = choice?.delta?.content ?? choice?.text ?? "";
        if (text && first === null) {
          first = performance.now() - began;
          say(this.foot, `First token after ${seconds(first / 1000)}`);
        }
        if (text) this.answer.append(text);
        tokens = event.usage?.completion_tokens ?? tokens;
      }
      const took = (performance.now() - began) / 1000;
      say(this.foot, `${number(tokens)} tokens in ${seconds(took)}, the first after ${seconds(first === null ? null : first / 1000)}`);
    } catch (error) {
      if (this.latest === signal) say(this.foot, error.name === "AbortError" ? "Stopped" : told(error));
    } finally {
      if (this.latest === signal) this.answer.dataset.busy = "no";
    }
  }

  showCode() {
    if (!this.element.querySelector("details").open) return;
    const asked = { model: this.input.value.trim(), ...this.body() };
    const chat = "messages" in asked;
    say(this.code[0].text, curl(at(chat ? "v1/chat/completions" : "v1/completions"), asked));
    say(this.code[1].text, python(at("v1"), asked, chat));
  }
}

function snippet(name) {
  const text = el("code");
  const copy = el("button", { type: "button", textContent: "Copy", aria: { label: `Copy the ${name} code` } });
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      notice(`Copied: ${name}`);
    } catch {
      getSelection().selectAllChildren(text);
      notice("Select and copy it by hand: this browser gives pages no clipboard here.");
    }
  });
  const pre = el("pre", { tabIndex: 0, aria: { role: "region", label: `${name} code` } }, text);
  return { text, element: el("div", {}, el("h3", {}, name), el("div", { className: "snippet" }, pre, copy)) };
}
