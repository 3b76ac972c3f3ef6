// SPDX-License-Identifier: Apache-2.0

// What becomes of a browser's relays when a gateway of two ends: those that are there go
// on, and new ones are at the other gateway, if the page names both. Chromium does go where
// it is sent (300), and is refused there for the nonce that it brings along (438). Over UDP
// that spoils its own try at the other gateway, too.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, suite, test } from "node:test";
import { makeSecret, mint } from "./credentials.js";
import { Gateway, Tab } from "./harness.js";
import { Network } from "./network.js";
import type * as relays from "./relays.js";
import { Trust } from "./trust.js";

const mebibyte = 2 ** 20;
/** Of the gateway that ends, and of the other one. */
const [ending, staying] = ["11.0.0.1", "11.0.0.2"] as const;

suite("a page whose gateway drains", { timeout: 600_000 }, () => {
  const secret = makeSecret();
  let network: Network;
  let trust: Trust;
  let tab: Tab<typeof relays>;
  const gateways: Gateway[] = [];
  let failed = true;

  async function up(id: string, host: string, ...args: string[]): Promise<Gateway> {
    const gateway = await Gateway.up(
      network.inside,
      ...["--id", id, "--data-dir", join(trust.home, id), "--listen", `${host}:8443`],
      ...["--public-address", host, "--public-address-ipv6", "", "--cluster.address", `${host}:8443`],
      ...["--tls.cert-file", trust.certFile, "--tls.key-file", trust.keyFile],
      ...["--turn.listen", `${host}:3478`, "--turn.secret-file", join(trust.home, "turn.secret")],
      ...["--ice.listen", `${host}:3479`, "--wireguard.mode", "netstack", "--wireguard.listen-port", "0"],
      ...["--metrics.listen", "", ...args],
    );
    gateways.push(gateway);
    return gateway;
  }

  before(async () => {
    network = await Network.make(ending, staying);
    trust = await Trust.make(ending, staying);
    await writeFile(join(trust.home, "turn.secret"), secret, { mode: 0o600 });
    const first = await up("gw1", ending, "--turn.drain-for", "10m");
    const joining = ["--cluster.join", first.ready.url, "--cluster.ca-file", trust.authorityFile];
    const token = ["--cluster.token-file", join(trust.home, "gw1", "admin.token")];
    const second = await up("gw2", staying, ...joining, ...token);
    const surroundings = { home: trust.home, program: network.program };
    tab = await Tab.open(second.page, new URL("relays.ts", import.meta.url), surroundings);
  });

  after(async () => {
    await tab?.close();
    for (const gateway of gateways) {
      await gateway.kill();
      if (failed) {
        console.error(gateway.log);
      }
    }
    await network?.remove();
    await trust?.remove();
  });

  test("keeps its relays, and gets new ones at the other gateway", async () => {
    const server = (url: string) => mint(secret, url, "shop.alice");
    const [udp, tcp] = [`turn:${ending}:3478?transport=udp`, `turn:${ending}:3478?transport=tcp`];
    const tls = `turns:${ending}:8443?transport=tcp`;
    await tab.run("meet", server(udp), server(tls));
    assert.deepEqual(await tab.run("gather", server(tcp)), { relays: [ending], errors: [] });

    const [first] = gateways;
    first?.terminate();
    await first?.logs("new relays go to other gateways");
    for (const url of [tcp, tls]) {
      const both = { ...server(url), urls: [url, url.replace(ending, staying)] };
      const { relays, errors } = await tab.run("gather", both);
      assert.deepEqual(relays, [staying], url);
      assert.deepEqual(errors, [{ url, code: 438 }]);
    }
    const { sent, received } = await tab.run("talk", mebibyte);
    assert.equal(received, sent);

    await tab.run("part");
    assert.equal(await first?.ended(), 0);
    failed = false;
  });
});
