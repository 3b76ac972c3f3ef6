// SPDX-License-Identifier: Apache-2.0

// The console as the gateway serves it, against a demo mesh.

import assert from "node:assert/strict";
import { after, before, suite, test } from "node:test";
import { type Browser, chromium, type Page } from "playwright-core";
import { Demo } from "./harness.js";

const nodes = ["phone", "firewalled"];
const patienceMs = 180_000;

suite("the console", { timeout: 900_000 }, () => {
  let demo: Demo;
  let browser: Browser;
  let page: Page;
  /** What the page logged as wrong, policy violations among it. */
  const offences: string[] = [];

  before(async () => {
    demo = await Demo.start();
    browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      timeout: patienceMs,
      args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    });
    page = await browser.newPage();
    page.setDefaultTimeout(patienceMs);
    page.on("console", (message) => {
      if (message.type() === "error") {
        offences.push(message.text());
      }
    });
    page.on("pageerror", (error) => offences.push(String(error)));
  });

  after(async () => {
    await browser?.close();
    await demo?.stop();
    if (offences.length > 0) {
      console.error(offences.join("\n"), demo?.log);
    }
  });

  /** Goes to a page of the console by its hash. */
  async function go(hash: string): Promise<void> {
    await page.evaluate(`location.hash = ${JSON.stringify(hash)}`);
  }

  test("a wrong token is refused with what to do", async () => {
    await page.goto(`${demo.ready.url}/#token=wrong`);
    await page.getByText("The gateway does not accept this token.").waitFor();
    // Chromium itself logs the refused request.
    const refusals = offences.splice(0).filter((text) => !text.includes("401"));
    assert.deepEqual(refusals, []);
  });

  test("the printed link signs in and the map shows the mesh", async () => {
    await page.goto("about:blank");
    await page.goto(`${demo.ready.url}/#token=${demo.ready.token}`);
    await page.getByRole("link", { name: "gateway, gateway" }).waitFor();
    for (const node of nodes) {
      await page.getByRole("link", { name: `${node}, online` }).waitFor();
    }
    assert.equal(await page.evaluate("location.hash"), "#/");
  });

  test("the gateway tells its interface and names its peers", async () => {
    await go("#/nodes/gateway");
    const peers = page.getByRole("table");
    for (const node of nodes) {
      await peers.getByRole("link", { name: node, exact: true }).waitFor();
    }
  });

  test("what is relayed is asked of the gateway", async () => {
    await go("#/relays");
    await page.getByText("Nothing is relayed now.").waitFor();
  });

  for (const node of nodes) {
    test(`bytes go to the TCP echo of ${node} and back`, async () => {
      await go(`#/connect/${node}`);
      await page.getByRole("link", { name: /^tcp-echo/ }).click();
      await page.getByText("Connected", { exact: true }).waitFor();
      const line = `hello ${node}, ü`;
      await page.getByLabel("Line to send").fill(line);
      await page.keyboard.press("Enter");
      await page.getByRole("log").locator(".in").getByText(line).waitFor();
      await page.getByText(/^(Direct|Relayed)$/).waitFor();
      await page.getByRole("button", { name: "Finish sending" }).click();
      await page.getByText("both sides are done").waitFor();
    });

    test(`the HTTP page of ${node} is shown`, async () => {
      await go(`#/connect/${node}`);
      await page.getByRole("link", { name: /^http/ }).click();
      await page.getByText("200 OK").waitFor();
      await page.getByRole("region", { name: "Body" }).getByText(`Hello from ${node}`).waitFor();
    });
  }

  test("what cannot be reached is explained", async () => {
    const port = page.getByLabel("Port, or host:port");
    await go("#/connect/firewalled");
    await port.fill("9");
    await port.press("Enter");
    await page
      .getByRole("alert")
      .getByText("The mesh does not let you reach port 9 of firewalled.")
      .waitFor();
    await go("#/connect/phone");
    await port.fill("9");
    await port.press("Enter");
    await page.getByRole("alert").getByText("Nothing answers at port 9 of phone.").waitFor();
  });

  test("nothing in the page broke its policy or failed", () => {
    assert.deepEqual(offences, []);
  });
});
