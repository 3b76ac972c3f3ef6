// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { Code, ConnectError, type ConnectRouter, createClient } from "@connectrpc/connect";
import { MeshgateError } from "./error.js";
import { Watch } from "./gen/meshgate/v1/watch_pb.js";
import { Mesh } from "./gen/v1/mesh_pb.js";
import { Node } from "./gen/v1/node_pb.js";
import { AsyncQueue } from "./queue.js";
import { defined } from "./testing/mesh.js";
import { settled, until } from "./testing/wait.js";
import { FakeWebSocketServer, type Faults } from "./testing/websocket.js";
import { createMeshTransport } from "./transport.js";

/** Answers each message with its candidate in capitals. */
function routes({ service }: ConnectRouter): void {
  service(Node, {
    async *negotiateDataChannel(requests, { requestHeader, responseTrailer }) {
      if (requestHeader.get("authorization") !== "Bearer token") {
        throw new ConnectError("who are you?", Code.Unauthenticated);
      }
      responseTrailer.set("x-trailer", "end");
      for await (const { candidate } of requests) {
        if (candidate === "fail") {
          throw new ConnectError("as you wish", Code.ResourceExhausted);
        }
        yield { candidate: candidate.toUpperCase() };
      }
    },
  });
}

function client(faults: Faults = {}, token = "token") {
  const server = new FakeWebSocketServer(routes, faults);
  const transport = createMeshTransport({
    baseUrl: "https://gate.example.org/",
    token,
    webSocket: server.open,
  });
  return { server, node: createClient(Node, transport) };
}

async function* several(...candidates: string[]) {
  for (const candidate of candidates) {
    yield { candidate };
  }
}

async function all(answers: AsyncIterable<{ candidate: string }>): Promise<string[]> {
  const texts: string[] = [];
  for await (const { candidate } of answers) {
    texts.push(candidate);
  }
  return texts;
}

function code(expected: string, message = /./) {
  return (reason: unknown) => {
    const error = MeshgateError.from(reason);
    assert.equal(error.code, expected);
    assert.match(error.message, message);
    return true;
  };
}

suite("a call over a WebSocket", () => {
  test("streams both ways at the same time", async () => {
    const { server, node } = client();
    const requests = new AsyncQueue<{ candidate: string }>();
    const trailers: Headers[] = [];
    const answers = node
      .negotiateDataChannel(requests, { onTrailer: (headers) => Object.assign(trailers, [headers]) })
      [Symbol.asyncIterator]();
    for (const candidate of ["a", "b", "c"]) {
      requests.push({ candidate });
      assert.equal((await answers.next()).value?.candidate, candidate.toUpperCase());
    }
    requests.end();
    assert.equal((await answers.next()).done, true);
    assert.equal(trailers[0]?.get("x-trailer"), "end");
    const socket = defined(server.sockets[0]);
    assert.equal(socket.url, "wss://gate.example.org/v1.Node/NegotiateDataChannel");
    assert.equal(socket.protocol, "grpc-websockets");
    assert.equal(socket.binaryType, "arraybuffer");
    assert.match(defined(server.headers[0]), /^authorization: Bearer token\r\n/m);
    assert.match(defined(server.headers[0]), /^content-type: application\/grpc-web\+proto\r\n/m);
    assert.match(defined(server.headers[0]), /^x-grpc-web: 1\r\n/m);
    await until(() => socket.readyState === 3);
  });

  test("is the same however the answer is cut", async () => {
    for (const cut of [1, 2, 3, 5, 7, 1000]) {
      assert.deepEqual(
        await all(client({ cut }).node.negotiateDataChannel(several("x", "long".repeat(100)))),
        ["X", "LONG".repeat(100)],
      );
    }
  });

  test("passes errors on, at the beginning and later", async () => {
    await assert.rejects(
      all(client({}, "wrong").node.negotiateDataChannel(several("a"))),
      code("unauthenticated", /who are you/),
    );
    await assert.rejects(
      all(client({}, "").node.negotiateDataChannel(several("a"))),
      code("unauthenticated"),
    );
    await assert.rejects(
      all(client().node.negotiateDataChannel(several("a", "fail"))),
      code("resource_exhausted", /as you wish/),
    );
  });

  test("takes trailers only", async () => {
    const text = Buffer.from("grpc-status: 7\r\ngrpc-message: no%20role\r\n");
    const answer = [Uint8Array.of(0x80, 0, 0, 0, text.byteLength), Uint8Array.from(text)];
    await assert.rejects(
      all(client({ answer }).node.negotiateDataChannel(several())),
      code("permission_denied", /^no role$/),
    );
  });

  test("fails when there is no WebSocket", async () => {
    const { node } = client({ refuse: true });
    await assert.rejects(
      all(node.negotiateDataChannel(several("a"))),
      code("unavailable", /wss:\/\/gate.example.org: check/),
    );
  });

  test("fails when the connection is lost", async () => {
    const { node } = client({ loseAfter: 60 });
    await assert.rejects(
      all(node.negotiateDataChannel(several("a", "b"))),
      code("unavailable", /close code 1006/),
    );
    const silent = client({ answer: [], closeCode: 1011 });
    await assert.rejects(all(silent.node.negotiateDataChannel(several("a"))), code("unavailable", /1011/));
    const polite = client({ answer: [] });
    await assert.rejects(
      all(polite.node.negotiateDataChannel(several("a"))),
      code("unavailable", /before it answered/),
    );
  });

  test("fails on what is not the protocol", async () => {
    const wrong: (string | Uint8Array<ArrayBuffer>)[][] = [
      ["text"],
      [Uint8Array.of(0, 0, 0, 0, 0)],
      [Uint8Array.of(0x80, 0xff, 0xff, 0xff, 0xff)],
    ];
    for (const answer of wrong) {
      const { server, node } = client({ answer });
      await assert.rejects(all(node.negotiateDataChannel(several("a"))), code("internal"));
      assert.equal(server.sockets[0]?.readyState, 3);
    }
  });

  test("fails when its requests do", async () => {
    const { server, node } = client();
    async function* broken() {
      yield { candidate: "a" };
      throw new Error("no more");
    }
    await assert.rejects(all(node.negotiateDataChannel(broken())), /no more/);
    assert.equal(server.sockets[0]?.readyState, 3);
  });

  test("can be aborted at any time", async () => {
    const early = client();
    await assert.rejects(
      all(early.node.negotiateDataChannel(several(), { signal: AbortSignal.abort() })),
      code("canceled"),
    );
    assert.equal(early.server.sockets.length, 0);

    for (const after of ["opening", "answer"]) {
      const { server, node } = client();
      const abort = new AbortController();
      const requests = new AsyncQueue<{ candidate: string }>();
      requests.push({ candidate: "a" });
      const answers = node.negotiateDataChannel(requests, { signal: abort.signal })[Symbol.asyncIterator]();
      const first = answers.next();
      if (after === "answer") {
        await first;
      }
      const pending = after === "answer" ? answers.next() : first;
      abort.abort();
      await assert.rejects(pending, code("canceled"));
      assert.equal(server.sockets[0]?.readyState ?? 3, 3);
    }
  });

  test("has a deadline", async () => {
    const { node } = client();
    await assert.rejects(
      all(node.negotiateDataChannel(new AsyncQueue(), { timeoutMs: 5 })),
      code("deadline_exceeded"),
    );
  });

  test("waits while the browser has too much to send", async () => {
    const { server, node } = client();
    const requests = new AsyncQueue<{ candidate: string }>();
    const answers = node.negotiateDataChannel(requests)[Symbol.asyncIterator]();
    requests.push({ candidate: "a" });
    await answers.next();
    const socket = defined(server.sockets[0]);
    socket.bufferedAmount = 2_000_000;
    requests.push({ candidate: "b" });
    const second = answers.next();
    await settled();
    assert.equal(await Promise.race([second, Promise.resolve("waiting")]), "waiting");
    socket.bufferedAmount = 0;
    assert.equal((await second).value?.candidate, "B");
  });
});

suite("the transport", () => {
  test("uses fetch for unary calls and server streams", async () => {
    const asked: string[] = [];
    const transport = createMeshTransport({
      baseUrl: new URL("https://gate.example.org"),
      credentials: async () => "fresh",
      fetch: async (input, init) => {
        const headers = new Headers(init?.headers);
        asked.push(`${init?.method} ${String(input)} ${headers.get("authorization")}`);
        const trailer = Buffer.from("grpc-status: 5\r\ngrpc-message: none\r\n");
        const body = Buffer.concat([Buffer.from([0x80, 0, 0, 0, trailer.byteLength]), trailer]);
        return new Response(body, { headers: { "content-type": "application/grpc-web+proto" } });
      },
    });
    await assert.rejects(createClient(Mesh, transport).listNodes({}), code("not_found"));
    await assert.rejects(async () => {
      for await (const _ of createClient(Watch, transport).watchMesh({})) {
        assert.fail("there is nothing to watch");
      }
    }, code("not_found"));
    assert.deepEqual(asked, [
      "POST https://gate.example.org/v1.Mesh/ListNodes Bearer fresh",
      "POST https://gate.example.org/meshgate.v1.Watch/WatchMesh Bearer fresh",
    ]);
  });

  test("says when the gateway cannot be reached", async () => {
    const transport = createMeshTransport({
      baseUrl: "https://gate.example.org",
      fetch: () => Promise.reject(new TypeError("Failed to fetch")),
    });
    await assert.rejects(
      createClient(Mesh, transport).listNodes({}),
      code("unavailable", /cannot be reached: check/),
    );
  });
});
