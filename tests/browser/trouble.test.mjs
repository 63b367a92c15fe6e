// The console where something is in its way: refusals, a proxy's page, no network, others who change what it shows.

import assert from "node:assert/strict";
import { test } from "node:test";
import { facts, names, on, opened } from "./page.mjs";

const NARROW = { width: 390, height: 844 };
const STATUS = "**/v1/status**";
const live = (page) => page.getByText("Live", { exact: true }).waitFor();

test("what was on its way when somebody signed out shows nothing", () =>
  on({ url: facts.keyed, mayFail: true }, async (page) => {
    await page.getByLabel("API key").fill(facts.key);
    await page.keyboard.press("Enter");
    await live(page);
    const held = await new Promise((resolve) => {
      page.route(STATUS, async (route) => resolve({ route, response: await route.fetch() }), { times: 1 });
    });
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("API key").waitFor();
    await held.route.fulfill({ response: held.response }).catch(() => {}); // it may have been called off
    await page.evaluate(() => fetch("../health").then((answer) => answer.text())); // behind which it has come
    assert.equal(await page.locator("table").count(), 0);
    await page.getByLabel("API key").waitFor();
  }));

test("a refusal is told in its own words, and left alone for as long as it says", () =>
  on({ mayFail: true, size: NARROW, prepare: (page) => page.clock.install() }, async (page) => {
    await opened(page);
    const words = "this key may send 60 requests a minute, and has sent them; wait 40 s, or ask its operator for more";
    let asked = 0;
    await page.route(STATUS, (route) => {
      asked += 1;
      return route.fulfill({ status: 429, headers: { "retry-after": "40" }, json: { error: { message: words } } });
    });
    await page.getByText(words).waitFor();
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true);
    await page.clock.runFor(20_000);
    assert.equal(asked, 1);
    await page.unroute(STATUS);
    await page.clock.runFor(25_000);
    await live(page);
  }));

test("a page in place of an answer is said, and asking goes on", () =>
  on({}, async (page) => {
    await live(page);
    await page.route(STATUS, (route) => route.fulfill({ contentType: "text/html", body: "<html>Sign in</html>" }));
    await page.getByText("What answers here isn't Livery, but a page").waitFor();
    await page.unroute(STATUS);
    await live(page);
  }));

test("a key that no header carries is refused where it is typed", () =>
  on({ url: facts.keyed, mayFail: true }, async (page) => {
    for (const given of ["ä-key", "€-key"]) {
      await page.getByLabel("API key").fill(given);
      await page.keyboard.press("Enter");
      await page.getByRole("alert").filter({ hasText: "letters that no HTTP header can carry" }).waitFor();
      assert.equal(await page.evaluate(() => sessionStorage.length), 0);
    }
    assert.equal(await page.getByText("doesn't answer").count(), 0);
    await page.getByLabel("API key").fill(facts.key);
    await page.keyboard.press("Enter");
    await live(page);
  }));

test("an adapter opened without a network says so, and is read once there is one", () =>
  on({ mayFail: true }, async (page) => {
    await opened(page);
    await page.context().setOffline(true);
    await page.getByRole("button", { name: "haiku", exact: true }).click();
    const dialog = page.getByRole("dialog", { name: "haiku" });
    await dialog.getByText("The server doesn't answer; try again.").waitFor();
    await page.context().setOffline(false);
    await dialog.getByRole("button", { name: "Load into memory" }).waitFor();
    assert.equal(await dialog.getByText("doesn't answer").count(), 0);
  }));

test("an adapter that others push off the page is still shown and changed as it is", () =>
  on({}, async (page) => {
    const put = async (name, source) => {
      const headers = { "content-type": "application/json" };
      const body = JSON.stringify({ source: `.pool/${source}` });
      const answer = await fetch(`${facts.url}/v1/adapters/${name}`, { method: "PUT", headers, body });
      assert.ok(answer.ok, await answer.text());
    };
    await opened(page);
    const last = (await names(page)).at(-1);
    for (const source of ["one", "two", "three", "one"]) await put(last, source);
    await page.getByRole("button", { name: last, exact: true }).click();
    const dialog = page.getByRole("dialog", { name: last });
    const back = dialog.getByRole("button", { name: "Roll back" });
    await back.waitFor();
    const before = await dialog.locator("[data-facts]").innerText();
    await put("0-overtakes", "one");
    await page.locator("[data-rows] button.name").getByText("0-overtakes").waitFor();
    assert.equal((await names(page)).includes(last), false);
    for (const _ of [1, 2]) {
      const answered = page.waitForResponse(/\/rollback$/);
      await back.click();
      assert.equal((await answered).status(), 200);
      await page.waitForFunction(() => document.activeElement.tagName === "H2"); // all of it was read anew
    }
    assert.notEqual(await dialog.locator("[data-facts]").innerText(), before);
    assert.ok((await fetch(`${facts.url}/v1/adapters/0-overtakes`, { method: "DELETE" })).ok);
  }));

test("what is run again waits for its own first token, whatever became of the run before", () =>
  on({}, async (page) => {
    await opened(page);
    await page.getByLabel("Most tokens").fill("2000");
    await page.getByRole("button", { name: "Run both" }).click();
    await page.waitForFunction(() => [...document.querySelectorAll(".answer")].every((one) => one.textContent.length > 20));
    const held = [];
    const both = new Promise((resolve) => {
      page.route("**/v1/chat/completions", (route) => held.push(route) === 2 && resolve());
    });
    await page.getByRole("button", { name: "Run again" }).click();
    await both;
    const feet = page.locator(".pane .foot");
    assert.deepEqual(await feet.allTextContents(), ["Waiting for the first token", "Waiting for the first token"]);
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText("Stopped", { exact: true }).nth(1).waitFor();
  }));
