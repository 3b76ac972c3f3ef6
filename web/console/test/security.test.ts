// SPDX-License-Identifier: Apache-2.0

// What comes from peers is text, whatever it says.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import { label } from "../src/format.ts";
import { nodeHash } from "../src/route.ts";
import { hostileNames } from "../src/testing/invent.ts";
import { launch, mapRests, openSignedIn } from "./browser.ts";
import { buildConsole, type Site, serve } from "./site.ts";

let browser: Browser;
let site: Site;
let remove: () => Promise<void>;

before(async () => {
  const built = await buildConsole("fake");
  remove = built.remove;
  site = await serve(built.folder);
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await site?.close();
  await remove?.();
});

test("hostile names are shown as they are and do nothing", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { query: "&hostile", to: "/nodes" });
  for (const name of hostileNames) {
    await page
      .getByRole("link", { name: label(name), exact: true })
      .first()
      .waitFor();
  }
  await page.evaluate(() => {
    location.hash = "#/";
  });
  await mapRests(page);
  for (const name of hostileNames) {
    await page.evaluate((to) => {
      location.hash = to;
    }, nodeHash(name));
    await page.getByRole("heading", { level: 1 }).getByText(label(name), { exact: true }).waitFor();
    assert.equal(await page.title(), `${label(name)} · Meshgate`);
    await page.getByRole("link", { name: "Show on map" }).click();
    await page.getByRole("complementary", { name: label(name), exact: true }).waitFor();
    await page.getByRole("link", { name: "Connect", exact: true }).click();
    await page.getByRole("heading", { level: 1 }).getByText(label(name)).waitFor();
  }
  await page.getByRole("link", { name: "Relays", exact: true }).click();
  const holders = page.getByRole("rowheader");
  for (const name of hostileNames) {
    await holders.getByText(label(name), { exact: true }).waitFor();
  }
  const foreign = await page.evaluate(
    () =>
      document.querySelectorAll(
        "main script, main img, main iframe, [onerror], [onload], [onmouseover], a[href^='javascript:']",
      ).length,
  );
  assert.equal(foreign, 0);
});

test("a hostile page is text, and inert when shown as a page", async (t) => {
  const { page, offences } = await openSignedIn(t, browser, site.origin, { to: "/connect/nas" });
  await page.getByRole("link", { name: /^http/ }).click();
  await page.getByRole("region", { name: "Body" }).getByText("parent.document.title").waitFor();
  assert.equal(await page.locator("iframe").count(), 0);

  // What leaves the browser. Its "request" events would not do: they also tell
  // of requests that the frame's policy has stopped.
  const requests: string[] = [];
  await page.route("**/*", (route) => {
    requests.push(route.request().url());
    return route.continue();
  });
  await page.getByLabel(/Show as a page/).check();
  const frame = page.frameLocator("iframe");
  await frame.getByRole("heading", { name: "It works" }).waitFor();
  assert.equal(await page.locator("iframe").getAttribute("sandbox"), "");
  const blocked = (what: string) =>
    page.waitForEvent("console", (message) => message.text().startsWith(`Blocked ${what}`));
  await Promise.all([blocked("form submission"), frame.getByRole("button", { name: "Log in" }).click()]);
  await Promise.all([blocked("opening"), frame.getByRole("link", { name: "About" }).click()]);
  await frame.getByRole("heading", { name: "It works" }).waitFor();
  assert.equal(await page.title(), "Connect to nas · Meshgate");
  assert.deepEqual(requests, []);
  assert.deepEqual(offences.dialogs, []);
  // The browser reports each thing that it kept the frame from doing.
  assert.ok(offences.errors.length > 0);
  offences.errors.length = 0;
});
