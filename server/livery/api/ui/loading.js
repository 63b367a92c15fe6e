// Loading an adapter: its two files from this machine, or a source that the server fetches.

import { notice, part } from "./dom.js";
import { json, named, told } from "./server.js";

const FILES = ["adapter_config.json", "adapter_model.safetensors"]; // in the order in which the server reads them

export class Loading {
  constructor(root, refresh) {
    this.refresh = refresh;
    this.caller = null;
    this.dialog = part(root, "loading");
    this.form = this.dialog.querySelector("form");
    this.error = part(this.dialog, "load-error");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    this.form.addEventListener("change", () => this.choose());
    part(this.dialog, "cancel").addEventListener("click", () => this.dialog.close());
  }

  open() {
    this.form.reset();
    this.error.textContent = "";
    part(this.dialog, "pin-too").hidden = !this.caller.may.pin;
    this.choose();
    this.dialog.showModal();
    this.form.querySelector("#load-name").focus();
  }

  get from() {
    return this.form.elements.from.value;
  }

  choose() {
    for (const part of this.dialog.querySelectorAll("[data-from]")) part.hidden = part.dataset.from !== this.from;
  }

  async load() {
    const button = this.form.querySelector("[type=submit]");
    button.disabled = true;
    button.textContent = "Loading…";
    this.error.textContent = "";
    try {
      const { name, answer } = await this.send();
      this.dialog.close();
      notice(`Loaded: ${name}, version ${answer.version}`);
      await this.refresh();
    } catch (error) {
      this.error.textContent = error instanceof RangeError ? error.message : told(error);
    } finally {
      button.disabled = false;
      button.textContent = "Load";
    }
  }

  /** Raises RangeError for what is missing. */
  async send() {
    const name = this.form.querySelector("#load-name").value.trim();
    if (!name) throw new RangeError("Give it a name: requests use it as their model.");
    const pinned = part(this.dialog, "pinned").checked;
    if (this.from === "source") {
      const source = this.form.querySelector("#load-source").value.trim();
      if (!source) throw new RangeError("Say where it is, such as hf://org/name.");
      const body = pinned ? { source, pinned } : { source };
      return { name, answer: await json("PUT", `v1/adapters/${named(name)}`, { body }) };
    }
    const given = [...this.form.querySelector("#load-files").files];
    const files = new FormData();
    for (const wanted of FILES) {
      const file = given.find((one) => one.name === wanted);
      if (!file) throw new RangeError(`Choose both files; ${wanted} is missing.`);
      files.append(wanted, file);
    }
    const path = `v1/adapters/${named(name)}/versions${pinned ? "?pinned=true" : ""}`;
    return { name, answer: await json("POST", path, { files }) };
  }
}
