// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { afterEach, mock, suite, test } from "node:test";
import { Code } from "@connectrpc/connect";
import { createMeshClient } from "./client.js";
import type { MeshgateError } from "./error.js";
import { Mesh } from "./gen/v1/mesh_pb.js";
import { closeClients, defined, echo, FakeMesh, rpcError } from "./testing/mesh.js";
import { pattern, settled, until } from "./testing/wait.js";

afterEach(async () => {
  await closeClients();
  mock.timers.reset();
});

function code(expected: string, message = /./) {
  return (error: MeshgateError) => {
    assert.equal(error.name, "MeshgateError");
    assert.equal(error.code, expected);
    assert.match(error.message, message);
    return true;
  };
}

suite("a client", () => {
  test("asks the gateway", async () => {
    const client = new FakeMesh().client();
    assert.deepEqual(
      (await client.nodes()).map(({ id }) => id),
      ["gateway", "web-1"],
    );
    assert.equal((await client.status()).id, "gateway");
    assert.equal((await client.status("web-1")).id, "web-1");
    assert.equal((await client.service(Mesh).listNodes({})).nodes.length, 2);
    await assert.rejects(client.nodes({ signal: AbortSignal.abort() }), code("canceled"));
    await assert.rejects(client.service(Mesh).getNode({ id: "x" }), /unimplemented/);
  });

  test("fetches over a node", async () => {
    const mesh = new FakeMesh();
    mesh.tcp.set("tcp::8080", async (stream) => {
      stream.open();
      const request = Buffer.from(defined(await stream.read())).toString();
      assert.match(request, /^GET \/big HTTP\/1.1\r\nhost: web-1:8080\r\n/);
      await stream.write(
        Buffer.from("HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n") as Uint8Array<ArrayBuffer>,
      );
      await stream.write(pattern(3_000_000));
    });
    const response = await mesh.client().fetch("http://web-1:8080/big");
    assert.ok(Buffer.from(await response.arrayBuffer()).equals(pattern(3_000_000)));
    await assert.rejects(
      mesh.client().fetch("http://web-1:8081/"),
      code("permission_denied", /tcp::8081 is not exposed/),
    );
  });

  test("leaves nothing behind when it is closed", async () => {
    const mesh = new FakeMesh();
    mesh.tcp.set("tcp::7", echo);
    const client = mesh.client();
    const connection = await client.connect({ node: "web-1", port: 7 });
    const reading = connection.readable.getReader().read();
    mesh.onIntroduction = () => new Promise(() => {});
    const connecting = client.connect({ node: "web-2", port: 7 });
    await settled();
    await client.close();
    await client.close();
    await assert.rejects(reading, code("canceled", /client was closed/));
    await assert.rejects(connection.closed, code("canceled"));
    await assert.rejects(connecting, code("canceled", /client was closed/));
    assert.equal(mesh.peer.connectionState, "closed");
    await assert.rejects(client.connect({ node: "web-1", port: 7 }), code("canceled"));
    await assert.rejects(client.fetch("http://web-1/"), code("canceled"));
    await assert.rejects(client.nodes(), code("canceled"));
    for await (const _ of client.watch()) {
      assert.fail("a closed client sees nothing");
    }
  });

  test("says where there is no WebRTC", async () => {
    const mesh = new FakeMesh();
    const client = createMeshClient({ baseUrl: "https://gate.example.org", transport: mesh.transport });
    await assert.rejects(
      client.connect({ node: "web-1", port: 80 }),
      code("unimplemented", /workers have none/),
    );
  });

  test("stops telling a listener that was removed", async () => {
    const mesh = new FakeMesh();
    mesh.tcp.set("tcp::7", echo);
    const client = mesh.client();
    let count = 0;
    const listener = () => void count++;
    client.addEventListener("state", listener);
    client.removeEventListener("state", listener);
    await client.connect({ node: "web-1", port: 7 });
    assert.ok(client.states.length > 0);
    assert.equal(count, 0);
  });
});

suite("watching", () => {
  test("goes on over a lost gateway until it is aborted", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    let streams = 0;
    const mesh = new FakeMesh({
      async *watch(_, { signal }) {
        streams++;
        if (streams === 2 || streams === 3) {
          throw rpcError(streams === 2 ? Code.Unavailable : Code.Unknown, "restarting");
        }
        yield { version: BigInt(streams) };
        if (streams === 4) {
          await new Promise((resolve) => signal.addEventListener("abort", resolve));
        }
      },
    });
    const client = mesh.client();
    const abort = new AbortController();
    const versions: bigint[] = [];
    const watching = (async () => {
      for await (const { version } of client.watch({ signal: abort.signal })) {
        versions.push(version);
      }
    })();
    for (const attempt of [1, 2, 3]) {
      await until(
        () => client.states.at(-1)?.state === "waiting" && client.states.at(-1)?.attempt === attempt,
      );
      const { retryInMs = -1, error } = defined(client.states.at(-1));
      assert.ok(retryInMs >= 0 && retryInMs <= 250 * 2 ** attempt);
      assert.match(defined(error).message, attempt === 1 ? /ended the stream/ : /restarting/);
      mock.timers.tick(retryInMs);
    }
    await until(() => versions.length === 2);
    assert.deepEqual(versions, [1n, 4n]);
    assert.equal(client.states.at(-1)?.state, "connected");
    assert.equal(client.states.at(-1)?.scope, "gateway");
    abort.abort();
    await watching;
    assert.equal(client.states.at(-1)?.state, "closed");
    assert.equal(client.states.at(-1)?.error, undefined);
  });

  test("throws what waiting does not mend", async () => {
    const mesh = new FakeMesh({
      // biome-ignore lint/correctness/useYield: it fails before it has anything to yield
      async *watch() {
        throw rpcError(Code.Unauthenticated, "the token has expired");
      },
    });
    const client = mesh.client();
    await assert.rejects(
      async () => {
        for await (const _ of client.watch()) {
          assert.fail("there is nothing to see");
        }
      },
      code("unauthenticated", /expired/),
    );
    assert.equal(client.states.at(-1)?.error?.code, "unauthenticated");
  });

  test("ends the stream when the loop is left", async () => {
    let ended = false;
    const mesh = new FakeMesh({
      async *watch(_, { signal }) {
        signal.addEventListener("abort", () => {
          ended = true;
        });
        yield { version: 1n };
        await new Promise(() => {});
      },
    });
    const client = mesh.client();
    for await (const { version } of client.watch()) {
      assert.equal(version, 1n);
      break;
    }
    await until(() => ended);
    assert.equal(client.states.at(-1)?.state, "closed");
  });

  test("starts anew when the network comes back", async () => {
    let streams = 0;
    const mesh = new FakeMesh({
      async *watch() {
        streams++;
        yield { version: BigInt(streams) };
        await new Promise(() => {});
      },
    });
    // Outside browsers there is nobody who tells.
    const network = new EventTarget();
    Object.assign(globalThis, { addEventListener: network.addEventListener.bind(network) });
    try {
      const client = mesh.client();
      const abort = new AbortController();
      for await (const { version } of client.watch({ signal: abort.signal })) {
        if (version === 1n) {
          network.dispatchEvent(new Event("online"));
          // The pause before the next attempt ends early, too.
          until(() => client.states.at(-1)?.state === "waiting").then(() =>
            network.dispatchEvent(new Event("online")),
          );
        } else {
          abort.abort();
        }
      }
      assert.equal(streams, 2);
    } finally {
      Reflect.deleteProperty(globalThis, "addEventListener");
    }
  });
});
