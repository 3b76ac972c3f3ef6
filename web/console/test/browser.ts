// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import type { TestContext } from "node:test";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";

/** Starts Chromium; CHROMIUM names another program than the usual one. */
export function launch(): Promise<Browser> {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    timeout: 60_000,
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/** What a page did that it must not do. */
export interface Offences {
  readonly errors: string[];
  readonly dialogs: string[];
}

/**
 * Opens a page that fails the test when it logs an error, throws, breaks its
 * content security policy or opens a dialog.
 */
export async function openPage(
  t: TestContext,
  browser: Browser,
  url: string,
  options: BrowserContextOptions = {},
): Promise<{ page: Page; offences: Offences }> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(60_000);
  const offences: Offences = { errors: [], dialogs: [] };
  const page = await context.newPage();
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") {
      offences.errors.push(message.text());
    }
  });
  page.on("pageerror", (error) => offences.errors.push(String(error)));
  page.on("dialog", (dialog) => {
    offences.dialogs.push(dialog.message());
    void dialog.dismiss();
  });
  await page.addInitScript(() => {
    addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
    });
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(offences, { errors: [], dialogs: [] });
  });
  await page.goto(url);
  return { page, offences };
}

/** Opens the fake console signed in, at a page. */
export function openSignedIn(
  t: TestContext,
  browser: Browser,
  origin: string,
  { to = "/", query = "", ...options }: { to?: string; query?: string } & BrowserContextOptions = {},
): Promise<{ page: Page; offences: Offences }> {
  const fragment = `#token=good&to=${encodeURIComponent(to)}`;
  return openPage(t, browser, `${origin}/?still&stepMs=0${query}${fragment}`, options);
}

const axePath = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** The serious and critical findings of axe on the page as it is now. */
export async function findBarriers(page: Page): Promise<string[]> {
  await page.evaluate(await readFile(axePath, "utf8"));
  return page.evaluate(async () => {
    const { axe } = window as unknown as { axe: typeof import("axe-core") };
    const { violations } = await axe.run(document, { resultTypes: ["violations"] });
    return violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .map(
        ({ id, help, nodes }) => `${id}: ${help}: ${nodes.map(({ html }) => html.slice(0, 200)).join(" | ")}`,
      );
  });
}

/** Waits until the nodes of the map rest. */
export async function mapRests(page: Page): Promise<void> {
  await page.locator('[data-moving="false"]').waitFor();
}
