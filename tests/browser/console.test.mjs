// The console in a real Chromium: what it shows and to whom, its verbs, its words to readers and keyboards, its policy.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { test } from "node:test";
import { promisify } from "node:util";
import { facts, look, names, on, opened, rows } from "./page.mjs";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const WIDE = { width: 1200, height: 780 };
const NARROW = { width: 390, height: 844 };

async function violations(page) {
  // Evaluated by the debugger, which no policy of the page binds.
  await page.evaluate(axe);
  const found = await page.evaluate(async () => (await globalThis.axe.run()).violations);
  return found.map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).join(", ")}`);
}

test("without a key there is a login and nothing else", () =>
  on({ url: facts.keyed, mayFail: true }, async (page) => {
    await page.getByLabel("API key").waitFor();
    assert.equal(await page.locator("table, nav, header, dialog").count(), 0);
    assert.equal((await page.locator("body").innerText()).includes(facts.base), false);
    await page.getByLabel("API key").fill("wrong");
    await page.keyboard.press("Enter");
    await page.getByRole("alert").filter({ hasText: "invalid API key" }).waitFor();
    assert.equal(await page.locator("table").count(), 0);
    await page.getByLabel("API key").fill(facts.key);
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Recent requests" }).waitFor();
    await page.reload();
    await page.getByRole("heading", { name: "Recent requests" }).waitFor();
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("API key").waitFor();
    assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    assert.equal(await page.locator("table").count(), 0);
  }));

test("a user's key shows no verbs", () =>
  on({ url: facts.keyed, mayFail: true }, async (page) => {
    await page.getByLabel("API key").fill(facts.user);
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Recent requests" }).waitFor();
    await page.getByText("Live", { exact: true }).waitFor();
    assert.equal(await page.getByRole("button", { name: "Load an adapter" }).count(), 0);
    await page.getByText("What tenant acme does.").waitFor();
    assert.equal(await page.getByText("The engine doesn't answer").count(), 0);
    assert.equal(await page.getByRole("meter").count(), 0);
  }));

test("the operator's key shows all there is, memory too", () =>
  on({ url: facts.keyed, mayFail: true }, async (page) => {
    await page.getByLabel("API key").fill(facts.key);
    await page.keyboard.press("Enter");
    await page.getByRole("meter", { name: "KV cache in use" }).waitFor();
    assert.equal(await page.getByText("What tenant").count(), 0);
  }));

test("the table is searched, sorted and paged by the server", () =>
  on({}, async (page) => {
    await opened(page);
    assert.equal(await rows(page).count(), 15);
    await page.getByRole("button", { name: "Next" }).click();
    await page.getByText(/^16 to /).waitFor();
    await page.getByRole("button", { name: "Tokens" }).click();
    await page.locator("th[aria-sort=descending]", { hasText: "Tokens" }).waitFor();
    await page.getByText(/^1 to 15/).waitFor();
    await page.waitForFunction(() => document.querySelector("[data-rows] button.name")?.textContent === "pirate");
    await page.getByRole("searchbox").fill("legal");
    await page.waitForFunction(() => document.querySelectorAll("[data-rows] tr").length === 2);
    assert.deepEqual((await names(page)).sort(), ["legal/contracts", "legal/privacy"]);
    await page.getByRole("status").filter({ hasText: /^2 of \d+ adapters$/ }).waitFor(); // readers hear it
    await page.getByRole("searchbox").fill("nobody");
    await page.getByText("No adapter's name holds that.").waitFor();
    await page.getByRole("searchbox").fill("");
    await page.getByRole("button", { name: "Rank" }).click();
    await page.locator("th[aria-sort=descending]", { hasText: "Rank" }).waitFor();
    await page.waitForFunction(() => document.querySelectorAll("[data-rows] tr").length === 15);
    const ranks = (await page.locator("[data-rows] tr td:nth-of-type(4)").allTextContents()).map(Number);
    assert.deepEqual(ranks, ranks.toSorted((one, other) => other - one));
    assert.ok(ranks[0] > ranks.at(-1) && ranks.at(-1) > 0);
    assert.deepEqual(new Set(await page.locator("[data-rows] tr td:nth-of-type(2)").allTextContents()), new Set(["ready"]));
  }));

test("one prompt streams from two adapters side by side, and stops", () =>
  on({}, async (page) => {
    await opened(page);
    const answers = page.locator(".answer");
    await page.getByLabel("Right model").fill("pirate");
    await page.getByLabel("Most tokens").fill("2000");
    await page.getByRole("button", { name: "Run both" }).click();
    await page.waitForFunction(() => [...document.querySelectorAll(".answer")].every((one) => one.textContent.length > 20));
    const early = (await answers.allTextContents()).map((text) => text.length);
    await page.waitForFunction(
      (before) => [...document.querySelectorAll(".answer")].every((one, at) => one.textContent.length > before[at]),
      early,
    );
    assert.match(await answers.first().textContent(), /The sea is a large body/);
    assert.match(await answers.last().textContent(), /Arr, the sea/);
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText("Stopped", { exact: true }).first().waitFor();
    await page.getByLabel("Most tokens").fill("8");
    await page.getByRole("button", { name: "Run both" }).click();
    await page.getByText(/^8 tokens in .*, the first after/).nth(1).waitFor();
    await page.getByText("The same from a program").last().click();
    const code = await page.locator(".pane").last().locator("code").allTextContents();
    assert.match(code[0], /curl '.*\/v1\/chat\/completions'/);
    assert.match(code[1], /OpenAI\(base_url=".*\/v1"/);
    assert.ok(code.every((text) => text.includes("pirate")));
    await page.getByLabel("Right model").fill("nobody");
    await page.getByLabel("Ask as").selectOption("completion");
  }));

test("the code to copy asks the same from a shell and from Python", () =>
  on({ permissions: ["clipboard-read", "clipboard-write"] }, async (page) => {
    await opened(page);
    await page.getByLabel("Prompt").fill("It's \"$HOME\",\nisn't it? \\ ü");
    await page.getByLabel("Right model").fill("pirate");
    await page.getByLabel("Most tokens").fill("6");
    await page.getByText("The same from a program").last().click();
    const copied = async (name) => {
      await page.locator(".pane").last().getByRole("button", { name: `Copy the ${name} code` }).click();
      await page.getByText(`Copied: ${name}`).waitFor();
      return page.evaluate(() => navigator.clipboard.readText());
    };
    const ran = promisify(execFile);
    const curl = JSON.parse((await ran("sh", ["-c", await copied("curl")])).stdout);
    assert.equal(curl.model, "pirate");
    assert.match(curl.choices[0].message.content, /^ ?Arr, the sea/);
    const python = (await ran(facts.python, ["-c", await copied("Python")])).stdout;
    assert.equal(python.trim(), curl.choices[0].message.content.trim());
  }));

test("recent requests say how they went, newest first, and not what they said", () =>
  on({ mayFail: true }, async (page) => {
    await opened(page);
    const secret = "xylophone";
    await page.getByLabel("Prompt").fill(secret);
    await page.getByLabel("Left model").fill("poet");
    await page.getByLabel("Right model").fill("nobody");
    await page.getByLabel("Most tokens").fill("5");
    await page.getByRole("button", { name: "Run both" }).click();
    const lines = page.locator("[data-requests] tr");
    const cells = (line) => line.locator("td").allTextContents();
    await lines.filter({ hasText: "poet" }).filter({ hasText: "Finished" }).first().waitFor();
    await lines.filter({ hasText: "Failed, 404" }).first().waitFor();
    const found = await Promise.all([lines.nth(0), lines.nth(1)].map(cells));
    const [, , , , tokens, first, , id] = found.find((line) => line[1] === "poet" && line[2] === "Finished");
    assert.equal(tokens, "5");
    assert.match(first, /ms|s$/);
    assert.match(id, /^req_/);
    assert.equal((await page.locator("#requests").innerText()).includes(secret), false);
  }));

test("a model that isn't there is told so beside the other's answer", () =>
  on({ mayFail: true }, async (page) => {
    await opened(page);
    await page.getByLabel("Right model").fill("nobody");
    await page.getByLabel("Most tokens").fill("4");
    await page.getByRole("button", { name: "Run both" }).click();
    await page.locator(".pane").last().getByText(/nobody/).first().waitFor();
    await page.locator(".pane").first().getByText(/^4 tokens in/).waitFor();
  }));

test("an adapter is loaded, pinned, replaced, rolled back, activated and unloaded", () =>
  on({ mayFail: true }, async (page) => {
    await opened(page);
    const dialog = page.getByRole("dialog");
    const load = async (files) => {
      await page.getByRole("button", { name: "Load an adapter" }).click();
      await dialog.getByLabel("Name").fill("browser/new");
      if (files) await dialog.getByLabel("Its two files").setInputFiles(files);
      await dialog.getByRole("button", { name: "Load", exact: true }).click();
    };
    await load([facts.upload[0]]);
    await page.getByRole("alert").filter({ hasText: "adapter_model.safetensors is missing" }).waitFor();
    await dialog.getByLabel("Its two files").setInputFiles(facts.upload);
    await dialog.getByRole("button", { name: "Load", exact: true }).click();
    await page.getByText("Loaded: browser/new, version 1").waitFor();
    await look(page, "browser/new");
    await dialog.getByRole("button", { name: "Pin" }).click();
    await dialog.getByRole("button", { name: "Unpin" }).waitFor();
    await dialog.getByRole("button", { name: "Load into memory" }).click();
    await page.getByText("Loaded: browser/new", { exact: true }).waitFor();
    await dialog.getByRole("button", { name: "Close" }).click();
    await rows(page).filter({ hasText: "browser/new" }).getByText("pinned").waitFor();
    await page.getByRole("button", { name: "Load an adapter" }).click();
    await dialog.getByLabel("Name").fill("browser/new");
    await dialog.getByLabel("A source").check();
    await dialog.getByLabel("Where it is").fill(".pool/two");
    await dialog.getByRole("button", { name: "Load", exact: true }).click();
    await page.getByText("Loaded: browser/new, version 2").waitFor();
    await look(page, "browser/new");
    await dialog.getByRole("button", { name: "Roll back" }).click();
    await dialog.getByRole("button", { name: "Activate version 2" }).click();
    await dialog.getByRole("button", { name: "Activate version 1" }).waitFor();
    await dialog.getByText(/q_proj × /).waitFor();
    await dialog.getByRole("button", { name: "Unload" }).click();
    const asked = page.getByRole("dialog", { name: "Unload browser/new?" });
    await asked.getByRole("button", { name: "Cancel" }).click();
    await dialog.getByRole("button", { name: "Unload" }).click();
    await asked.getByRole("button", { name: "Unload" }).click();
    await page.getByText("Unloaded: browser/new").waitFor();
    await page.getByText("No adapter's name holds that.").waitFor();
  }));

test("names and errors with markup in them are text", () =>
  on(
    {
      prepare: (page) =>
        page.route("**/v1/status?*", async (route) => {
          const answer = await route.fetch();
          const found = await answer.json();
          const markup = "<img src=x onerror=\"globalThis.ran=1\"><script>globalThis.ran=1</script>";
          found.base.name = markup;
          for (const adapter of found.adapters.data) [adapter.name, adapter.error] = [markup + adapter.name, { message: markup }];
          found.caller = { ...found.caller, sees: "tenant", tenant: markup };
          for (const request of found.requests) [request.model, request.id] = [markup, markup];
          await route.fulfill({ response: answer, json: found });
        }),
    },
    async (page) => {
      await opened(page);
      assert.match((await names(page))[0], /^<img src=x onerror=/);
      await page.getByText("What tenant <img src=x onerror=").waitFor();
      assert.equal(await page.locator("main img, main script").count(), 0);
      assert.equal(await page.evaluate(() => globalThis.ran), undefined);
    },
  ));

test("a server that goes away is said, and it goes on when it is back", () =>
  on({ mayFail: true }, async (page) => {
    await opened(page);
    await page.context().setOffline(true);
    await page.getByText("The server doesn't answer; trying again").waitFor();
    assert.equal(await rows(page).count(), 15);
    await page.context().setOffline(false);
    await page.getByText("Live", { exact: true }).waitFor();
  }));

test("nobody who looks is nobody who asks", () =>
  on({}, async (page) => {
    await opened(page);
    const hide = (hidden) =>
      page.evaluate((value) => {
        Object.defineProperty(document, "hidden", { value, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    await hide(true);
    await page.waitForLoadState("networkidle");
    const asked = page.waitForRequest(/v1\/status/, { timeout: 3500 }).then(() => true, () => false);
    assert.equal(await asked, false);
    const again = page.waitForRequest(/v1\/status/);
    await hide(false);
    await again;
  }));

for (const scheme of ["light", "dark"]) {
  for (const [name, size] of [["wide", WIDE], ["narrow", NARROW]]) {
    test(`axe finds nothing, ${name} and ${scheme}`, () =>
      on({ scheme, size }, async (page) => {
        await opened(page);
        await page.getByLabel("Right model").fill("pirate");
        await page.getByLabel("Most tokens").fill("24");
        await page.getByRole("button", { name: "Run both" }).click();
        await page.getByText(/^24 tokens in/).nth(1).waitFor();
        await page.getByRole("button", { name: "Tokens" }).click();
        await page.locator("th[aria-sort=descending]").waitFor();
        assert.deepEqual(await violations(page), []);
        await look(page, "pirate");
        await page.getByRole("button", { name: "Activate version 1" }).waitFor();
        assert.deepEqual(await violations(page), []);
        await page.keyboard.press("Escape");
        await page.getByRole("button", { name: "Load an adapter" }).click();
        assert.deepEqual(await violations(page), []);
      }));
  }
  test(`axe finds nothing in the login, ${scheme}`, () =>
    on({ url: facts.keyed, scheme, mayFail: true }, async (page) => {
      await page.getByLabel("API key").waitFor();
      assert.deepEqual(await violations(page), []);
    }));
}

test("the keyboard alone reaches everything, and what has the focus shows it", () =>
  on({}, async (page) => {
    await opened(page);
    const focused = () =>
      page.evaluate(() => {
        const at = document.activeElement;
        const style = getComputedStyle(at);
        const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
        return { words: at.labels?.[0]?.innerText ?? at.textContent.trim(), seen, in: at.closest("[id]")?.id };
      });
    const tabTo = async (words) => {
      for (let presses = 0; presses < 80; presses += 1) {
        await page.keyboard.press("Tab");
        const found = await focused();
        assert.ok(found.seen, `nothing shows that the focus is on ${found.words}`);
        if (found.words === words) return;
      }
      assert.fail(`Tab never came to ${words}`);
    };
    await tabTo("Skip to the adapters");
    await page.keyboard.press("Enter");
    await tabTo("Load an adapter");
    await page.keyboard.press("Enter");
    await page.getByRole("dialog", { name: "Load an adapter" }).waitFor();
    await page.keyboard.press("Escape");
    await tabTo("Tokens");
    await page.keyboard.press("Enter");
    await page.locator("th[aria-sort=descending]").waitFor();
    await tabTo("pirate");
    await page.keyboard.press("Enter");
    await page.getByRole("dialog", { name: "pirate" }).getByRole("button", { name: "Unpin" }).waitFor();
    await tabTo("Load into memory");
    await page.keyboard.press("Escape");
    assert.equal((await focused()).words, "pirate");
    await tabTo("Run both");
    await page.keyboard.press("Enter");
    await page.getByText(/^64 tokens in/).nth(1).waitFor();
  }));
