// SPDX-License-Identifier: Apache-2.0

// TURN as a browser uses it: over UDP, over TCP, and over TLS at the port of HTTPS.

import assert from "node:assert/strict";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { after, before, suite } from "node:test";
import { makeSecret, mint } from "./credentials.js";
import { Gateway, Stories, Tab } from "./harness.js";
import type * as relays from "./relays.js";
import { Trust } from "./trust.js";

const mebibyte = 2 ** 20;
/** The port of the gateway at which an echo is exposed. */
const echoPort = 7;
/** How many relays a user may hold. */
const relaysPerUser = 4;

suite("a page in Chromium that has a relay alone", { timeout: 600_000 }, () => {
  const echo = createServer((socket) => socket.on("error", () => socket.destroy()).pipe(socket));
  const secret = makeSecret();
  let trust: Trust;
  let gateway: Gateway;
  let tab: Tab<typeof relays>;
  const stories = new Stories();

  /** The URL of the gateway's TURN server over each transport, by what statistics call it. */
  const servers = {
    udp: () => `turn:${gateway.ready.turn}?transport=udp`,
    tcp: () => `turn:${gateway.ready.turn}?transport=tcp`,
    tls: () => `turns:${new URL(gateway.ready.url).host}?transport=tcp`,
  };
  const transports = ["udp", "tcp", "tls"] as const;

  before(async () => {
    trust = await Trust.make("127.0.0.1");
    const secretFile = join(trust.home, "turn.secret");
    await writeFile(secretFile, secret, { mode: 0o600 });
    await once(echo.listen(0, "127.0.0.1"), "listening");
    const { port } = echo.address() as AddressInfo;
    gateway = await Gateway.dev(
      ...["--tls.off=false", "--tls.cert-file", trust.certFile, "--tls.key-file", trust.keyFile],
      ...["--turn.secret-file", secretFile, "--turn.allocations-per-user", String(relaysPerUser)],
      ...["--expose", `tcp:${echoPort}=127.0.0.1:${port}`],
    );
    tab = await Tab.open(gateway.page, new URL("relays.ts", import.meta.url), trust);
  });

  after(async () => {
    await tab?.close();
    await gateway?.stop();
    await trust?.remove();
    echo.close();
    if (stories.failed) {
      console.error(gateway.log);
    }
  });

  const server = (url: string, user: string) => mint(secret, url, user);

  for (const transport of transports) {
    stories.add(`exchanges bytes with a service over ${transport}, while HTTPS answers`, async () => {
      const url = servers[transport]();
      const service = { node: "gateway", port: echoPort };
      const { bytes, sent, received, local, statuses } = await tab.run(
        "echoThrough",
        gateway.access,
        service,
        url,
        mebibyte,
      );
      assert.deepEqual(local, { candidateType: "relay", relayProtocol: transport, url });
      assert.equal(received, sent);
      assert.ok(bytes >= mebibyte, `${bytes} bytes`);
      assert.deepEqual(statuses, [200, 200, 200, 200, 200]);
    });
  }

  stories.add("meets another one over two relays", async () => {
    const [near, far] = [server(servers.udp(), "shop.alice"), server(servers.tls(), "shop.bob")];
    assert.deepEqual(await tab.run("meet", near, far), [
      { candidateType: "relay", relayProtocol: "udp", url: near.urls },
      { candidateType: "relay", relayProtocol: "tls", url: far.urls },
    ]);
    const { bytes, sent, received } = await tab.run("talk", mebibyte);
    assert.equal(received, sent);
    assert.equal(bytes, mebibyte);
    await tab.run("part");
  });

  for (const transport of transports) {
    stories.add(`is told over ${transport} that its credential is not good`, async () => {
      const wrong = { ...server(servers[transport](), "shop.eve"), credential: "wrong" };
      const { relays, errors } = await tab.run("gather", wrong);
      assert.deepEqual(relays, []);
      assert.deepEqual(errors, [{ url: wrong.urls, code: 401 }]);
    });
  }

  stories.add("is told that it has all the relays that it may have", async () => {
    const { relays, errors } = await tab.run(
      "gather",
      server(servers.udp(), "shop.carol"),
      relaysPerUser + 1,
    );
    assert.equal(relays.length, relaysPerUser);
    assert.deepEqual(errors, [{ url: servers.udp(), code: 486 }]);
  });

  stories.add("gets no relay over TLS from who has the certificate of another name", async () => {
    const url = servers.tls().replace("127.0.0.1", "localhost");
    const { relays, errors } = await tab.run("gather", server(url, "shop.dave"));
    assert.deepEqual(relays, []);
    assert.ok(errors.length > 0);
    for (const error of errors) {
      assert.deepEqual(error, { url, code: 701 });
    }
  });
});
