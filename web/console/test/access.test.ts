// SPDX-License-Identifier: Apache-2.0

// Every page is free of serious barriers, light and dark, wide and narrow.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { findBarriers, launch, mapRests, openPage, openSignedIn } from "./browser.ts";
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

const pages: { name: string; to: string; query?: string; ready: (page: Page) => Promise<unknown> }[] = [
  { name: "map", to: "/", ready: mapRests },
  { name: "map with a node", to: "/?node=camera-back", ready: mapRests },
  { name: "empty map", to: "/", query: "&nodes=1", ready: mapRests },
  {
    name: "search",
    to: "/",
    ready: async (page) => {
      await mapRests(page);
      await page.keyboard.press("/");
      await page.keyboard.type("web");
      await page.getByRole("option").first().waitFor();
    },
  },
  { name: "nodes", to: "/nodes", ready: (page) => page.getByRole("table").waitFor() },
  { name: "links", to: "/nodes?table=links", ready: (page) => page.getByRole("table").waitFor() },
  { name: "relays", to: "/relays", ready: (page) => page.getByRole("table").waitFor() },
  { name: "gateway", to: "/nodes/gateway-1", ready: (page) => page.getByRole("table").waitFor() },
  { name: "plain peer", to: "/nodes/nas", ready: (page) => page.getByText("plain WireGuard peer").waitFor() },
  { name: "node that is down", to: "/nodes/lab-scope", ready: (page) => page.getByRole("alert").waitFor() },
  { name: "connect", to: "/connect/nas", ready: (page) => page.getByText("Pick a service").waitFor() },
  {
    name: "echo",
    to: "/connect/nas",
    ready: async (page) => {
      await page.getByRole("link", { name: /tcp-echo/ }).click();
      await page.getByLabel("Line to send").fill("hello");
      await page.keyboard.press("Enter");
      await page.getByRole("log").locator(".in").waitFor();
    },
  },
  {
    name: "denied",
    to: "/connect/nas",
    ready: async (page) => {
      await page.getByLabel("Port, or host:port").fill("25");
      await page.keyboard.press("Enter");
      await page.getByRole("alert").waitFor();
    },
  },
  {
    name: "site",
    to: "/connect/nas",
    ready: async (page) => {
      await page.getByRole("link", { name: /^http/ }).click();
      await page.getByRole("region", { name: "Body" }).waitFor();
    },
  },
];

// Colours do not depend on the width, nor the arrangement on the colours.
const looks = [
  { colorScheme: "light", viewport: { width: 1280, height: 800 } },
  { colorScheme: "dark", viewport: { width: 360, height: 740 } },
] as const;

for (const look of looks) {
  test(`no serious barriers, ${look.colorScheme}, ${look.viewport.width} px`, async (t) => {
    await t.test("sign-in", async (sub) => {
      const { page } = await openPage(sub, browser, `${site.origin}/?still&stepMs=0#token=wrong`, look);
      await page.getByRole("alert").waitFor();
      assert.deepEqual(await findBarriers(page), []);
    });
    for (const { name, to, query, ready } of pages) {
      await t.test(name, async (sub) => {
        const { page } = await openSignedIn(sub, browser, site.origin, {
          to,
          ...(query && { query }),
          ...look,
        });
        await ready(page);
        assert.deepEqual(await findBarriers(page), []);
      });
    }
  });
}
