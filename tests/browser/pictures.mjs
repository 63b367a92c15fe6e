// Pictures of the console over the demo model: its front, one adapter, and one prompt to two of them.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const facts = JSON.parse(process.env.LIVERY_CONSOLE);
const BUSY_S = 30; // of the last minute, before the first picture
const SIZES = { wide: { width: 1200, height: 780 }, narrow: { width: 390, height: 844 } };
let browser;

before(async () => {
  for (let busy = 0; busy < BUSY_S; ) {
    const found = await (await fetch(`${facts.url}/v1/status`)).json();
    busy = found.throughput.generated_by_second.filter(Boolean).length;
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  browser = await chromium.launch({ executablePath: facts.chromium, args: ["--no-sandbox"] });
});
after(() => browser?.close());

for (const scheme of ["light", "dark"]) {
  for (const [size, viewport] of Object.entries(SIZES)) {
    test(`${size}, ${scheme}`, async () => {
      const context = await browser.newContext({ viewport, colorScheme: scheme, reducedMotion: "reduce" });
      context.setDefaultTimeout(60_000);
      const page = await context.newPage();
      const picture = async (name) => page.screenshot({ path: join(facts.screenshots, `${name}-${size}-${scheme}.png`) });
      try {
        await page.goto(`${facts.url}/ui`);
        await page.getByRole("button", { name: "Tokens" }).click();
        await page.locator("th[aria-sort=descending]").waitFor();
        await page.waitForFunction(() => Number(document.querySelector("[data-rate]").textContent) > 0);
        await page.getByText(/steps\/s/).waitFor();
        await picture("console");
        await page.getByRole("button", { name: facts.detail, exact: true }).click();
        await page.getByRole("button", { name: "Activate version 1" }).waitFor();
        await picture("adapter");
        await page.keyboard.press("Escape");
        await page.getByLabel("Prompt").fill("What is the capital of France?");
        await page.getByLabel("Left model").fill("pirate");
        await page.getByLabel("Right model").fill("portuguese");
        await page.getByRole("button", { name: "Run both" }).click();
        await page.getByText(/^\d+ tokens in .*, the first after/).nth(1).waitFor();
        const answers = await page.locator(".answer").allTextContents();
        assert.ok(answers.every((answer) => answer.includes("Paris")), answers.join(" | "));
        await page.evaluate(() => document.activeElement.blur());
        await page.locator("#try").evaluate((section) => section.scrollIntoView());
        await picture("try");
      } finally {
        await context.close();
      }
    });
  }
}
