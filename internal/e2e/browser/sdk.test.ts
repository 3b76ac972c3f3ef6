// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { after, before, suite, test } from "node:test";
import { gzipSync } from "node:zlib";
import { Demo, Stories, Tab } from "./harness.js";

const nodes = ["phone", "firewalled"];
/** The port of the gateway at which {@link service} is exposed. */
const exposedPort = 8081;

/** What /download/N sends. */
function pattern(length: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, index) => index % 251));
}

function sha256(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** A service on this machine that the gateway exposes to the mesh. */
const service: RequestListener = (request, response) => {
  switch (request.url) {
    case "/echo":
      request.pipe(response);
      break;
    case "/other-origin":
      response.setHeader("content-type", "text/html");
      response.end("<!doctype html><title>another origin</title>");
      break;
    case "/redirect":
      request.resume().on("end", () => response.writeHead(303, { location: "/page" }).end("see there"));
      break;
    case "/page":
      response.setHeader("content-encoding", "gzip");
      response.setHeader("set-cookie", ["a=1", "b=2"]);
      response.end(gzipSync(`${request.method} of a compressed page`));
      break;
    default:
      response.writeHead(404).end();
  }
};

suite("a page in Chromium", { timeout: 900_000 }, () => {
  const server = createServer(service);
  let demo: Demo;
  let tab: Tab;
  const stories = new Stories();

  before(async () => {
    await once(server.listen(0, "127.0.0.1"), "listening");
    const { port } = server.address() as AddressInfo;
    demo = await Demo.start("--expose", `tcp:${exposedPort}=127.0.0.1:${port}`);
    tab = await Tab.open(demo.page);
  });

  after(async () => {
    await tab?.close();
    await demo?.stop();
    server.closeAllConnections();
    server.close();
    if (stories.failed) {
      console.error(demo.log);
    }
  });

  stories.add("makes unary calls", async () => {
    const { nodes: ids, ...rest } = await tab.run("unary", demo.access);
    assert.deepEqual(ids, ["firewalled", "gateway", "phone"]);
    assert.deepEqual(rest, { gateway: "gateway", firewalled: "firewalled", error: "not_found" });
  });

  stories.add("follows the mesh over a server stream", async () => {
    const { gateway, nodes: ids, states } = await tab.run("watch", demo.access);
    assert.equal(gateway, "gateway");
    assert.deepEqual(ids, ["firewalled", "gateway", "phone"]);
    assert.deepEqual(states, ["gateway connecting", "gateway connected", "gateway closed"]);
  });

  stories.add("streams both ways over a WebSocket", async () => {
    const { offer, servers, error } = await tab.run("bidi", demo.access);
    assert.equal(offer, "offer");
    assert.ok(
      servers.some((url) => url.startsWith("turn:")),
      `no TURN server among ${servers}`,
    );
    assert.equal(error, "not_found");
  });

  stories.add("is told when its token is not good", async () => {
    for (const token of ["", "wrong"]) {
      const error = await tab.run("denied", { ...demo.access, token });
      assert.equal(error.code, "unauthenticated");
      assert.ok(error.isMeshgateError && error.message.length > 10, error.message);
      const connecting = await tab.run("refused", { ...demo.access, token }, demo.service("phone", "http"));
      assert.equal(connecting.code, "unauthenticated");
    }
  });

  for (const node of nodes) {
    stories.add(`reaches a TCP echo on ${node}`, async () => {
      const { equal, path, states } = await tab.run(
        "echo",
        demo.access,
        demo.service(node, "tcp-echo"),
        3_000_000,
      );
      assert.ok(equal);
      assert.equal(path.kind, "direct");
      assert.ok(path.remote.port > 0, JSON.stringify(path));
      const order = ["signaling", "checking", "securing", "connected"].map((step) => states.indexOf(step));
      assert.deepEqual(
        [...order].sort((left, right) => left - right),
        order,
        states.join(),
      );
    });

    stories.add(`opens 20 connections to ${node} at the same time`, async () => {
      assert.equal(await tab.run("parallel", demo.access, demo.service(node, "tcp-echo"), 20), 20);
    });

    stories.add(`makes ${node} wait while it does not read`, async () => {
      const result = await tab.run("slowReader", demo.access, demo.service(node, "tcp-echo"), 40_000_000);
      assert.ok(result.equal);
      // Each window, queue and socket buffer on the way holds something (the host's grow to many
      // megabytes), and nothing holds everything.
      assert.ok(result.before < 36_000_000, `${result.before} bytes were written without being read`);
    });

    stories.add(`fetches 10 MB from ${node}`, async () => {
      const { port } = demo.service(node, "http");
      const result = await tab.run("download", demo.access, `http://${node}:${port}/download/10000000`);
      assert.deepEqual([result.status, result.bytes], [200, 10_000_000]);
      assert.equal(result.sha256, sha256(pattern(10_000_000)));
      assert.ok(result.chunks > 10);
    });

    stories.add(`makes many requests to ${node}`, async () => {
      const { port } = demo.service(node, "http");
      const { texts, missing, head } = await tab.run("requests", demo.access, `http://${node}:${port}/`);
      assert.equal(texts.length, 31);
      for (const text of texts) {
        assert.match(text, new RegExp(`Hello from ${node}`));
      }
      // The page tells from which port one came, so this is the number of connections.
      assert.ok(new Set(texts).size <= 16);
      assert.deepEqual([missing, head], [404, 200]);
    });

    stories.add(`exchanges datagrams with ${node}`, async () => {
      assert.deepEqual(await tab.run("udpEcho", demo.access, demo.service(node, "udp-echo")), [1, 100, 1200]);
    });

    stories.add(`can give up at any moment on ${node}`, async () => {
      const { port } = demo.service(node, "http");
      const url = `http://${node}:${port}/download/100000000`;
      assert.deepEqual(await tab.run("aborts", demo.access, demo.service(node, "tcp-echo"), url), {
        before: "canceled",
        negotiating: "canceled",
        reading: "canceled",
        closed: "canceled",
        body: "canceled",
        next: "none",
      });
    });
  }

  stories.add("streams 4 MB to a service of the gateway and back at the same time", async () => {
    const result = await tab.run("uploadEcho", demo.access, `http://gateway:${exposedPort}/echo`, 4_000_000);
    assert.equal(result.status, 200);
    assert.equal(result.sent, sha256(pattern(4_000_000)));
    assert.equal(result.received, result.sent);
  });

  stories.add("follows redirects and decompresses", async () => {
    const result = await tab.run("redirect", demo.access, `http://gateway:${exposedPort}/redirect`);
    assert.deepEqual(result, {
      url: `http://gateway:${exposedPort}/page`,
      redirected: true,
      text: "GET of a compressed page",
      cookies: ["a=1", "b=2"],
    });
  });

  stories.add("is told what is not allowed, and why", async () => {
    const unexposed = await tab.run("refused", demo.access, { node: "firewalled", port: 9 });
    assert.equal(unexposed.code, "permission_denied");
    assert.match(unexposed.message, /expose/);
    const udp = await tab.run("refusedUdp", demo.access, { node: "firewalled", port: 9 });
    assert.equal(udp.code, "permission_denied");
    assert.match(udp.message, /expose/);
    for (let count = 0; count < 10; count++) {
      // A client whose channel is closed together with the reason may never see the reason.
      const again = await tab.run("refused", demo.access, {
        node: "phone",
        host: "169.254.169.254",
        port: 80,
      });
      assert.equal(again.code, "permission_denied", again.message);
    }
    const outside = await tab.run("refused", demo.access, {
      node: "phone",
      host: "169.254.169.254",
      port: 80,
    });
    assert.equal(outside.code, "permission_denied");
    assert.match(outside.message, /169\.254\.169\.254/);
    const nobody = await tab.run("refused", demo.access, { node: "nobody", port: 80 });
    assert.equal(nobody.code, "not_found");
    const silent = await tab.run("refused", demo.access, { node: "phone", port: 9 });
    assert.equal(silent.code, "unavailable");
    for (const error of [unexposed, udp, outside, nobody, silent]) {
      assert.ok(error.isMeshgateError && error.message.length > 10, error.message);
    }
  });
});

suite("a page behind a firewall that lets only the relay through", { timeout: 600_000 }, () => {
  let demo: Demo;
  let tab: Tab;

  before(async () => {
    demo = await Demo.start();
    tab = await Tab.open(demo.page);
  });

  after(async () => {
    await tab?.close();
    await demo?.stop();
  });

  for (const node of nodes) {
    test(`reaches ${node} over TURN`, async () => {
      const access = { ...demo.access, iceTransportPolicy: "relay" as const };
      const { equal, path } = await tab.run("echo", access, demo.service(node, "tcp-echo"), 1_000_000);
      assert.ok(equal);
      assert.equal(path.kind, "relayed");
      assert.equal(path.local.type, "relay");
      const { port } = demo.service(node, "http");
      const result = await tab.run("download", access, `http://${node}:${port}/download/2000000`);
      assert.equal(result.sha256, sha256(pattern(2_000_000)));
    });
  }
});

suite("a page of another origin", { timeout: 600_000 }, () => {
  test("may use the gateway if its operator says so", async () => {
    const server = createServer(service);
    await once(server.listen(0, "127.0.0.1"), "listening");
    const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const tab = await Tab.open(`${origin}/other-origin`);
    try {
      const friendly = await Demo.start("--cors.origins", origin);
      try {
        assert.equal((await tab.run("unary", friendly.access)).gateway, "gateway");
        const { equal } = await tab.run(
          "echo",
          friendly.access,
          friendly.service("phone", "tcp-echo"),
          100_000,
        );
        assert.ok(equal);
      } finally {
        await friendly.stop();
      }
      const strict = await Demo.start();
      try {
        const unary = await tab.run("denied", strict.access);
        assert.equal(unary.code, "unavailable");
        assert.match(unary.message, /allows this page's origin/);
        const bidi = await tab.run("refused", strict.access, strict.service("phone", "tcp-echo"));
        assert.equal(bidi.code, "unavailable");
        assert.ok(bidi.message.includes(`--cors.origins ${origin}`), bidi.message);
      } finally {
        await strict.stop();
      }
    } finally {
      await tab.close();
      server.closeAllConnections();
      server.close();
    }
  });
});

suite("a page whose gateway goes away", { timeout: 600_000 }, () => {
  test("is told, and its connections reject", async () => {
    const demo = await Demo.start();
    const tab = await Tab.open(demo.page);
    try {
      await tab.run("beforeLoss", demo.access, demo.service("phone", "tcp-echo"));
      await demo.stop();
      const { code, message, states } = await tab.run("afterLoss");
      assert.equal(code, "unavailable", message);
      assert.match(message, /lost node phone/);
      assert.ok(states.includes("waiting") || states.includes("closed"), states.join());
    } finally {
      await tab.close();
      await demo.kill();
    }
  });
});
