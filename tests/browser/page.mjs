// A page of the console in Chromium, for the tests beside this file.

import assert from "node:assert/strict";
import { after, before } from "node:test";
import { chromium } from "playwright-core";

export const facts = JSON.parse(process.env.LIVERY_CONSOLE);
const WIDE = { width: 1200, height: 780 };
const SLOW = { timeout: 30_000 };
let browser;

before(async () => {
  browser = await chromium.launch({ executablePath: facts.chromium, args: ["--no-sandbox"] });
});
after(() => browser?.close());

/** A page of the console; `run` gets it, and afterwards nothing may have gone wrong in it. */
export async function on({ url = facts.url, size = WIDE, scheme = "light", mayFail = false, permissions = [], prepare }, run) {
  const context = await browser.newContext({ viewport: size, colorScheme: scheme, reducedMotion: "reduce", permissions });
  context.setDefaultTimeout(SLOW.timeout);
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => {
    const words = message.text();
    if (message.type() === "error" && !(mayFail && words.startsWith("Failed to load resource"))) wrong.push(words);
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective}`));
  });
  try {
    await prepare?.(page);
    await page.goto(`${url}/ui`);
    await run(page);
    assert.deepEqual(wrong, []);
  } finally {
    await context.close();
  }
}

export const rows = (page) => page.locator("[data-rows] tr");
export const names = (page) => page.locator("[data-rows] button.name").allTextContents();
export const opened = (page) => rows(page).first().waitFor();

/** Search for one adapter and open what there is to see of it. */
export async function look(page, name) {
  await page.getByRole("searchbox").fill(name);
  await page.getByRole("button", { name, exact: true }).click();
  await page.getByRole("dialog").getByRole("heading", { name, exact: true }).waitFor();
}
