// SPDX-License-Identifier: Apache-2.0

// The console in a real browser, over the invented mesh.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import { launch, mapRests, openPage, openSignedIn } from "./browser.ts";
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

test("sign in by typing a token", async (t) => {
  const { page } = await openPage(t, browser, `${site.origin}/?still&stepMs=0`);
  await page.getByLabel("Token", { exact: true }).fill("good");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { name: "Map of the mesh" }).waitFor();
  assert.equal(await page.title(), "Map · Meshgate");
});

test("a wrong token says what to do, and the next one may be right", async (t) => {
  const { page } = await openPage(t, browser, `${site.origin}/?still&stepMs=0`);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("Paste a token first.").waitFor();
  await page.getByLabel("Token", { exact: true }).fill("wrong");
  await page.keyboard.press("Enter");
  const alert = page.getByRole("alert");
  await alert.getByText("The gateway does not accept this token.").waitFor();
  await alert.getByText("sudo cat /var/lib/meshgate/admin.token", { exact: true }).waitFor();
  const field = page.getByLabel("Token", { exact: true });
  const kept = await field.evaluate((input: HTMLInputElement) => ({
    type: input.type,
    value: input.value,
    selected: [input.selectionStart, input.selectionEnd],
    focused: document.activeElement === input,
  }));
  assert.deepEqual(kept, { type: "password", value: "wrong", selected: [0, 5], focused: true });
  await page.keyboard.type("good");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Map of the mesh" }).waitFor();
});

test("a token in the fragment is used once, removed, and kept nowhere", async (t) => {
  const { page } = await openPage(
    t,
    browser,
    `${site.origin}/?still&stepMs=0#token=canary-7731&to=/nodes/nas`,
  );
  await page.getByRole("heading", { name: "nas", level: 1 }).waitFor();
  assert.equal(new URL(page.url()).hash, "#/nodes/nas");
  const stored = await page.evaluate(() =>
    JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, history.state]),
  );
  assert.ok(!stored.includes("canary-7731"));
  assert.ok(!(await page.content()).includes("canary-7731"));
  await page.reload();
  await page.getByRole("heading", { name: "Sign in to your mesh" }).waitFor();
});

test("the map shows every node, and a choice shows the node beside it", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin);
  await mapRests(page);
  assert.equal(await page.locator("[data-node]").count(), 30);
  const summary = page.getByRole("list").filter({ hasText: "30 nodes" });
  // Each node is counted in one of the states, the gateway as well.
  const counts = await summary.locator(".n").allTextContents();
  assert.equal(
    counts.reduce((sum, text) => sum + Number(text), 0),
    30,
  );
  await page.getByRole("link", { name: "nas, online" }).click();
  const panel = page.getByRole("complementary", { name: "nas" });
  await panel.getByText("172.16.1.4").waitFor();
  assert.equal(new URL(page.url()).hash, "#/?node=nas");
  await panel.getByRole("link", { name: "Close the panel" }).click();
  await panel.waitFor({ state: "detached" });
});

test("changes are shown live and nothing jumps", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin);
  await mapRests(page);
  const places = () =>
    page
      .locator("[data-node]")
      .evaluateAll((nodes) => nodes.map((node) => node.parentElement?.getAttribute("transform")));
  const before = await places();
  await page.evaluate(() => {
    const { meshgateFake: fake } = window as unknown as {
      meshgateFake: import("../src/testing/fake.ts").FakeControl;
    };
    const mesh = fake.snapshot();
    fake.show({
      ...mesh,
      version: "2",
      links: mesh.links.map((link) => ({ ...link, online: link.nodeId !== "nas" })),
    });
  });
  await page.getByRole("link", { name: "nas, down" }).waitFor();
  await page.getByRole("link", { name: "camera-back, online" }).waitFor();
  assert.deepEqual(await places(), before);
});

test("a lost gateway is told, with what is known left on the screen", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin);
  await page.getByText("Live", { exact: true }).waitFor();
  const fake = (call: "lose" | "expire") =>
    page.evaluate((name) => {
      (window as unknown as { meshgateFake: Record<string, () => void> }).meshgateFake[name]?.();
    }, call);
  await fake("lose");
  await page.getByText("The gateway cannot be reached.").waitFor();
  assert.equal(await page.locator("[data-node]").count(), 30);
  await page.getByRole("button", { name: "Try now" }).click();
  await page.getByText("Live", { exact: true }).waitFor();
  await fake("expire");
  await page.getByText("Your sign-in has ended").waitFor();
});

test("from sign-in to an answer with the keyboard alone", async (t) => {
  const { page } = await openPage(t, browser, `${site.origin}/?still&stepMs=0`);
  await page.getByLabel("Token", { exact: true }).waitFor();
  await page.keyboard.type("good");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Map of the mesh" }).waitFor();
  await mapRests(page);

  // The map is one stop of the Tab key; arrows go on inside.
  const focused = () => page.evaluate(() => document.activeElement?.getAttribute("data-node") ?? "");
  const tabTo = async (what: string, reached: () => Promise<boolean>): Promise<void> => {
    for (let i = 0; i < 40; i++) {
      if (await reached()) {
        return;
      }
      await page.keyboard.press("Tab");
    }
    assert.fail(`Tab does not reach ${what}`);
  };
  await tabTo("the map", async () => (await focused()) !== "");
  assert.equal(await focused(), "gateway-1");
  await page.keyboard.press("ArrowLeft");
  const neighbour = await focused();
  assert.ok(neighbour !== "" && neighbour !== "gateway-1");
  await page.keyboard.press("Enter");
  await page.getByRole("complementary", { name: neighbour, exact: true }).waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("complementary").waitFor({ state: "detached" });

  await page.keyboard.press("/");
  await page.keyboard.type("nas");
  await page.getByRole("option", { name: /^nas/ }).waitFor();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "nas", level: 1 }).waitFor();
  const service = page.getByRole("link", { name: /tcp-echo/ });
  await tabTo("the service", () => service.evaluate((link) => link === document.activeElement));
  await page.keyboard.press("Enter");
  await page.getByText("Connected").waitFor();
  const line = page.getByLabel("Line to send");
  await page.waitForFunction(() => document.activeElement?.getAttribute("aria-label") === "Line to send");
  await page.keyboard.type("hello mesh");
  await page.keyboard.press("Enter");
  const log = page.getByRole("log");
  await log.locator(".in").getByText("hello mesh").waitFor();
  await page.keyboard.press("ArrowUp");
  assert.equal(await line.inputValue(), "hello mesh");
});

test("a connection survives a change of page, shows hex, and can be cleared and finished", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/connect/nas" });
  await page.getByRole("link", { name: /tcp-echo/ }).click();
  await page.getByLabel("Line to send").fill("48 69 00");
  await page.getByLabel("Sent as").selectOption("hex");
  await page.keyboard.press("Tab");
  await page.getByRole("button", { name: "Send", exact: true }).click();
  const log = page.getByRole("log");
  await log.locator(".in").getByText("Hi␀").waitFor();
  await page.getByLabel("Show as hex").check();
  await log.locator(".in").getByText("0000 48 69 00").waitFor();

  await page.getByRole("link", { name: "All about it" }).click();
  await page.getByText("Direct", { exact: true }).waitFor();
  await page.getByText("12 ms round trip").waitFor();
  await page.goBack();
  await log.locator(".in").getByText("Hi␀").waitFor();

  await page.getByRole("button", { name: "Clear" }).click();
  await log.getByText("Nothing yet.").waitFor();
  await page.getByRole("button", { name: "Finish sending" }).click();
  await page.getByText("both sides are done").waitFor();
});

test("the path of a plain peer ends at the gateway", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/connect/nas" });
  const card = page.getByRole("region", { name: "Path from this browser" });
  await card.getByText("This browser has no connection to the node.").waitFor();
  assert.equal(await card.getByRole("link", { name: "Connect" }).count(), 0);
  await page.getByRole("link", { name: /^tcp-echo/ }).click();
  await page.getByText("· direct to the gateway").waitFor();
  await page.getByText("A host is reached from the gateway").waitFor();
  await card
    .getByText("Direct to the gateway, through the NATs in between; from there over WireGuard.")
    .waitFor();
  await card.getByText("203.0.113.7:40900").waitFor();
  assert.deepEqual(await card.locator("dt").allTextContents(), ["Here", "Gateway"]);
});

test("the way to connect is offered where it leads somewhere", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/nodes/nas" });
  const card = page.getByRole("region", { name: "Path from this browser" });
  await card.getByRole("link", { name: "Connect" }).click();
  await page.getByRole("heading", { name: "Connect to nas" }).waitFor();
});

test("a peer that was just created waits, and is not called broken", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/nodes/printer" });
  await page.getByText("Waiting for its first handshake").waitFor();
  const badge = page.locator("main .badge");
  assert.deepEqual(await badge.allTextContents(), ["waiting"]);
  const colours = await badge.evaluate((element) => ({
    badge: getComputedStyle(element).color,
    muted: getComputedStyle(document.querySelector("main .muted") ?? document.body).color,
  }));
  assert.equal(colours.badge, colours.muted);
  await page.getByText("printer is a plain WireGuard peer, so it cannot report on itself.").waitFor();
  assert.doesNotMatch(
    String(await page.locator("main").textContent()),
    /meshgate join|TOKEN|DNS name|mesh\.internal/,
  );
});

test("a node of Meshgate is told how to expose a service", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/nodes/laptop" });
  await page.getByText("add this to the meshgate join that starts it:").waitFor();
  await page.getByText("--expose tcp:8080=127.0.0.1:8080", { exact: true }).waitFor();
  assert.doesNotMatch(String(await page.locator("main").textContent()), /DNS name|mesh\.internal/);
});

test("a relayed path and a refused port are explained", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/connect/hotel-pc" });
  const target = page.getByLabel("Port, or host:port");
  await target.fill("70000");
  await target.press("Enter");
  await page.getByText("Write a port from 1 to 65535").waitFor();
  await target.fill("25");
  await target.press("Enter");
  const alert = page.getByRole("alert");
  await alert.getByText("The mesh does not let you reach port 25 of hotel-pc.").waitFor();
  await page.getByText("UDP does not get out of this network").waitFor();
  await target.fill("10.0.0.5:81");
  await page.getByRole("button", { name: "Open site" }).click();
  await alert.getByText("Nothing answers at 10.0.0.5:81 through hotel-pc.").waitFor();
});

test("an address that names a port connects only when asked to", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/connect/nas?port=22" });
  await page.getByText("Not connected.").waitFor();
  await page.getByRole("region", { name: "port 22 of nas" }).getByRole("button", { name: "Connect" }).click();
  await page.getByRole("log").getByText("SSH-2.0").waitFor();
});

test("HTTP shows status, headers and body, and sends what is asked for", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/connect/nas" });
  await page.getByRole("link", { name: /^http/ }).click();
  const body = page.getByRole("region", { name: "Body" });
  await body.getByText("<h1>It works</h1>").waitFor();
  await page.getByText("Response headers").click();
  await page.getByText("fake/1.0").waitFor();

  await page.getByLabel("Method").selectOption("POST");
  await page.getByLabel("Path", { exact: true }).fill("json");
  await page.getByText("Request headers and body").click();
  await page.getByLabel("Headers, one a line").fill("nonsense");
  await page.getByLabel("Body", { exact: true }).first().fill("payload");
  await page.getByRole("button", { name: "Send", exact: true }).click();
  await page.getByText("Not a header:").waitFor();
  await page.getByLabel("Headers, one a line").fill("X-Test: yes");
  await page.getByRole("button", { name: "Send", exact: true }).click();
  await body.getByText('{"method":"POST","body":"payload","headers":[["X-Test","yes"]]}').waitFor();

  await page.getByLabel("Path", { exact: true }).fill("/binary");
  await page.getByRole("button", { name: "Send", exact: true }).click();
  await body.getByText("0010  10 11 12 13").waitFor();
});

test("tables sort and are searched", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/nodes" });
  const first = page.locator("tbody tr").first();
  await first.getByRole("link", { name: "backup" }).waitFor();
  await page.getByRole("button", { name: "State" }).click();
  await first.getByText("down").waitFor();
  assert.equal(
    await page.getByRole("columnheader", { name: "State" }).getAttribute("aria-sort"),
    "ascending",
  );
  await page.getByRole("button", { name: "State" }).click();
  await first.getByText("gateway", { exact: true }).waitFor();
  await page.keyboard.press("/");
  await page.keyboard.type("nothing like it");
  await page.getByRole("button", { name: "Clear the search" }).click();
  await first.getByText("gateway", { exact: true }).waitFor();
  await page.getByRole("link", { name: /^Links/ }).click();
  await first.getByText("down").waitFor();
});

test("relays are shown, sorted and searched, and how to end them", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin);
  await page.getByRole("link", { name: "Relays", exact: true }).click();
  await page.getByRole("heading", { name: "Relays", level: 1 }).waitFor();
  assert.equal(await page.title(), "Relays · Meshgate");
  const rows = page.locator("tbody tr");
  await rows.first().getByText("alice").waitFor();
  await page.getByRole("link", { name: "hotel-pc", exact: true }).waitFor();
  await page.getByText("meshgate turn close --user NAME", { exact: true }).waitFor();
  await page.getByRole("button", { name: "Age" }).click();
  await page.getByRole("button", { name: "Age" }).click();
  await rows.first().getByText("static:printer").waitFor();
  await page.keyboard.press("/");
  await page.keyboard.type("shop");
  await page.getByText("1 relay", { exact: true }).waitFor();
  assert.equal(await rows.count(), 1);
  await page.keyboard.type("ping list");
  await page.getByRole("button", { name: "Clear the search" }).click();
  await rows.first().getByText("static:printer").waitFor();
});

test("empty states say how to fill them", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { query: "&nodes=1" });
  await page.getByText("meshgate peer create phone", { exact: true }).waitFor();
  await page.getByText(`meshgate join ${site.origin} --token TOKEN`, { exact: true }).waitFor();
  await page.getByRole("link", { name: "gateway-1, gateway" }).click();
  const expose = page.getByText("--expose tcp:8080=127.0.0.1:8080", { exact: true });
  await expose.waitFor();
  await page.getByText("add this to the command that starts the gateway:").waitFor();
});

test("pages that are not there say so", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { to: "/nodes/ghost" });
  await page.getByRole("heading", { name: "No node of this name" }).waitFor();
  await page.evaluate(() => {
    location.hash = "#/no/such/page";
  });
  await page.getByRole("heading", { name: "There is no such page" }).waitFor();
});

test("a command is copied", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, {
    query: "&nodes=1",
    permissions: ["clipboard-read", "clipboard-write"],
  });
  await page.getByRole("button", { name: "Copy command: meshgate peer create phone" }).click();
  await page
    .getByRole("button", { name: "Copy command: meshgate peer create phone" })
    .getByText("Copied")
    .waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "meshgate peer create phone");
});

test("the theme follows the device until somebody chooses, and the choice is kept", async (t) => {
  const { page } = await openPage(t, browser, `${site.origin}/?still`, { colorScheme: "dark" });
  const scheme = () =>
    page.evaluate(() => {
      const [r = 0] = getComputedStyle(document.body).backgroundColor.match(/\d+/g)?.map(Number) ?? [];
      return r < 128 ? "dark" : "light";
    });
  assert.equal(await scheme(), "dark");
  await page.getByRole("button", { name: /^Theme: as the device/ }).click();
  await page.getByRole("button", { name: /^Theme: light/ }).waitFor();
  assert.equal(await scheme(), "light");
  await page.reload();
  assert.equal(await scheme(), "light");
});

test("500 nodes are shown, and moving the view costs next to nothing", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { query: "&nodes=500" });
  await mapRests(page);
  assert.equal(await page.locator("[data-node]").count(), 500);
  // Work of the page itself, without painting, which is the browser's and depends on the machine. What
  // else the machine does makes some steps longer, and none shorter.
  const least = await page.evaluate(async () => {
    const map = document.querySelector("svg[role=group]");
    const times: number[] = [];
    for (let i = 0; i < 21; i++) {
      const start = performance.now();
      const deltaY = i % 2 === 0 ? -20 : 20;
      map?.dispatchEvent(new WheelEvent("wheel", { deltaY, clientX: 600, clientY: 400, cancelable: true }));
      await Promise.resolve();
      times.push(performance.now() - start);
      await new Promise((resolve) => requestAnimationFrame(resolve));
    }
    return Math.min(...times);
  });
  assert.ok(least < 8, `a step takes ${least.toFixed(1)} ms, half a frame`);
});

test("nothing overflows at 360 px", async (t) => {
  const { page } = await openSignedIn(t, browser, site.origin, { viewport: { width: 360, height: 740 } });
  for (const hash of [
    "#/",
    "#/?node=nas",
    "#/nodes",
    "#/nodes?table=links",
    "#/nodes/gateway-1",
    "#/relays",
    "#/connect/nas?port=7",
    "#/connect/nas?port=80",
  ]) {
    await page.evaluate((to) => {
      location.hash = to;
    }, hash);
    await page.waitForFunction(
      (to) => location.hash === to && document.querySelector("main h1") !== null,
      hash,
    );
    const wide = await page.evaluate(() =>
      [document.documentElement, ...document.querySelectorAll("main, main > *")]
        .filter((box) => box.scrollWidth > box.clientWidth + 1)
        .map((box) => box.className),
    );
    assert.deepEqual(wide, [], hash);
  }
});
