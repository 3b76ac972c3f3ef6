// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { afterEach, mock, suite, test } from "node:test";
import { Code } from "@connectrpc/connect";
import type { MeshgateError } from "./error.js";
import { WebRTC } from "./gen/v1/webrtc_pb.js";
import { closeClients, echo, FakeMesh, rpcError } from "./testing/mesh.js";
import { settled, until } from "./testing/wait.js";
import { FakeWebSocketServer, type Faults } from "./testing/websocket.js";
import { createMeshTransport } from "./transport.js";

afterEach(async () => {
  await closeClients();
  mock.timers.reset();
  Reflect.deleteProperty(globalThis, "location");
});

const url = "https://gate.example.org:8443";
const target = { node: "web-1", port: 7 };

/** What fetch does for a page: it finds nobody, or the browser keeps the answer from the page. */
const blocked = () => Promise.reject(new TypeError("Failed to fetch"));

/** An answer of the gateway, be it that it refuses the call. */
async function refusal(): Promise<Response> {
  const trailer = Buffer.from("grpc-status: 16\r\ngrpc-message: who are you\r\n");
  const body = Buffer.concat([Buffer.from([0x80, 0, 0, 0, trailer.byteLength]), trailer]);
  return new Response(body, { headers: { "content-type": "application/grpc-web+proto" } });
}

/** A gateway as it is met through a browser's network. */
function network(faults: Faults, fetch: () => Promise<Response>) {
  const calls: string[] = [];
  const server = new FakeWebSocketServer(({ service }) => {
    service(WebRTC, {
      // biome-ignore lint/correctness/useYield: it fails before it has anything to yield
      async *startDataChannel() {
        throw rpcError(Code.Unavailable, "node web-1 is offline");
      },
    });
  }, faults);
  const transport = createMeshTransport({
    baseUrl: url,
    webSocket: server.open,
    fetch: (input) => {
      calls.push(new URL(String(input)).pathname);
      return fetch();
    },
  });
  const client = new FakeMesh().client({ baseUrl: url, transport });
  return { client, server, calls };
}

/** The error that a call fails with, before any timer has run out. */
async function failure(call: () => Promise<unknown>): Promise<MeshgateError> {
  mock.timers.enable({ apis: ["setTimeout"] });
  let error: MeshgateError | undefined;
  call().catch((reason: MeshgateError) => {
    error = reason;
  });
  await until(() => error !== undefined);
  assert.ok(error !== undefined);
  return error;
}

suite("a gateway that was never reached", () => {
  test("is given up at once, with the likely causes, when the browser blocks an ordinary call, too", async () => {
    Object.assign(globalThis, {
      location: { origin: "https://app.example.org", href: "https://app.example.org/page" },
    });
    const { client, server, calls } = network({ refuse: true }, blocked);
    const error = await failure(() => client.connect(target));
    assert.equal(error.name, "MeshgateError");
    assert.equal(error.code, "unavailable");
    assert.ok(error.message.includes(url), error.message);
    assert.ok(error.message.includes("--cors.origins https://app.example.org"), error.message);
    assert.equal(server.sockets.length, 1);
    assert.deepEqual(calls, ["/v1.Mesh/GetNode"]);
    assert.equal(client.states.at(-1)?.state, "closed");
    assert.equal(client.states.at(-1)?.error?.message, error.message);
  });

  test("is given up at once by fetch", async () => {
    const { client, server } = network({ refuse: true }, blocked);
    const error = await failure(() => client.fetch("http://web-1:8080/"));
    assert.match(error.message, /cannot be reached: .*--cors\.origins ORIGIN/);
    assert.equal(server.sockets.length, 1);
  });

  test("needs no word on origins when it served the page itself", async () => {
    Object.assign(globalThis, { location: { origin: url, href: `${url}/` } });
    const { client } = network({ refuse: true }, blocked);
    const { message } = await failure(() => client.connect(target));
    assert.match(message, /cannot be reached: check that it is up/);
    assert.doesNotMatch(message, /cors/);
  });

  test("is tried again when it answers an ordinary call, which is made but once", async () => {
    const { client, server, calls } = network({ refuse: true }, refusal);
    mock.timers.enable({ apis: ["setTimeout"] });
    const connecting = client.connect({ ...target, signal: AbortSignal.timeout(60_000) });
    for (const attempt of [1, 2, 3]) {
      await until(
        () => client.states.at(-1)?.state === "waiting" && client.states.at(-1)?.attempt === attempt,
      );
      assert.match(String(client.states.at(-1)?.error?.message), /no WebSocket to .*--cors\.origins/);
      mock.timers.tick(client.states.at(-1)?.retryInMs ?? 0);
    }
    await until(() => server.sockets.length === 4);
    assert.deepEqual(calls, ["/v1.Mesh/GetNode"]);
    await client.close();
    await assert.rejects(connecting, { code: "canceled" });
  });

  test("is not asked when a WebSocket opened", async () => {
    const { client, calls } = network({}, blocked);
    mock.timers.enable({ apis: ["setTimeout"] });
    const connecting = client.connect(target);
    await until(() => client.states.at(-1)?.state === "waiting");
    assert.equal(client.states.at(-1)?.error?.message, "node web-1 is offline");
    assert.deepEqual(calls, []);
    await client.close();
    await assert.rejects(connecting, { code: "canceled" });
  });

  test("ends with the call that asks for it", async () => {
    const { client, calls } = network({ refuse: true }, () => new Promise(() => {}));
    const abort = new AbortController();
    const connecting = client.connect({ ...target, signal: abort.signal });
    await until(() => calls.length === 1);
    abort.abort();
    await assert.rejects(connecting, { code: "canceled" });
    await until(() => client.states.at(-1)?.state === "closed");
  });
});

test("a gateway that has answered before is waited for", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const mesh = new FakeMesh();
  mesh.tcp.set("tcp::7", echo);
  const lost = createMeshTransport({
    baseUrl: url,
    webSocket: new FakeWebSocketServer(() => {}, { refuse: true }).open,
    fetch: blocked,
  });
  let isUp = true;
  const client = mesh.client({
    transport: {
      unary: (...args) => (isUp ? mesh.transport : lost).unary(...args),
      stream: (...args) => (isUp ? mesh.transport : lost).stream(...args),
    },
  });
  await client.nodes();
  isUp = false;
  const connecting = client.connect(target);
  await until(() => client.states.at(-1)?.state === "waiting");
  isUp = true;
  mock.timers.tick(client.states.at(-1)?.retryInMs ?? 0);
  await settled();
  await connecting;
});
