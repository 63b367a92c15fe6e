// The load test's pages in a real Chromium: what axe finds, whether a phone shows them whole, what their script does.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const facts = JSON.parse(process.env.LIVERY_CONSOLE);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const SIZES = { wide: { width: 1280, height: 900 }, narrow: { width: 390, height: 844 } };
let browser;

before(async () => {
  browser = await chromium.launch({ executablePath: facts.chromium, args: ["--no-sandbox"] });
});
after(() => browser?.close());

/** A report; `run` gets its page, and afterwards nothing may have gone wrong in it. */
async function on(url, { size = "wide", scheme = "light" }, run) {
  const context = await browser.newContext({ viewport: SIZES[size], colorScheme: scheme, reducedMotion: "reduce" });
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("request", (request) => request.url() !== url && wrong.push(`asked for ${request.url()}`));
  try {
    await page.goto(url);
    await run(page);
    assert.deepEqual(wrong, []);
  } finally {
    await context.close();
  }
}

for (const [name, url] of Object.entries(facts.reports)) {
  for (const scheme of ["light", "dark"]) {
    for (const size of Object.keys(SIZES)) {
      test(`axe finds nothing in ${name}, ${scheme}, ${size}`, () =>
        on(url, { size, scheme }, async (page) => {
          for (const summary of await page.locator("summary").all()) await summary.click();
          await page.evaluate(axe); // by the debugger, which no policy of the page binds
          const found = await page.evaluate(async () => (await globalThis.axe.run()).violations);
          const told = found.map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(" ")).join(", ")}`);
          assert.deepEqual(told, []);
        }));
    }
  }
  test(`${name} fits a phone: only tables scroll sideways`, () =>
    on(url, { size: "narrow" }, async (page) => {
      const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.ok(over <= 0, `${over} pixels too wide`);
    }));
}

test("pointing at a curve tells what it is there", () =>
  on(facts.reports.suite, {}, async (page) => {
    const canvas = page.locator(".canvas").first();
    await canvas.scrollIntoViewIfNeeded();
    await canvas.hover();
    await page.locator(".tip").first().waitFor();
    assert.match(await page.locator(".tip").first().innerText(), /\d/);
  }));
