// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { afterEach, mock, suite, test } from "node:test";
import { setImmediate } from "node:timers/promises";
import type { MeshgateError } from "./error.js";
import { closeClients, defined, echo, FakeMesh, type ServerStream } from "./testing/mesh.js";
import { pattern, readAll, settled, until } from "./testing/wait.js";
import type { MeshConnection } from "./types.js";

afterEach(async () => {
  await closeClients();
  mock.timers.reset();
});

const mebibyte = 1024 * 1024;

/** A connection, and the node's end of it, which does nothing by itself. */
async function connected(): Promise<{ mesh: FakeMesh; connection: MeshConnection; stream: ServerStream }> {
  const mesh = new FakeMesh();
  mesh.tcp.set("tcp::80", (stream) => stream.open());
  const connection = await mesh.client().connect({ node: "web-1", port: 80 });
  return { mesh, connection, stream: defined(mesh.streams.get("tcp::80")) };
}

function code(expected: string, message = /./) {
  return (error: MeshgateError) => {
    assert.equal(error.name, "MeshgateError");
    assert.equal(error.code, expected);
    assert.match(error.message, message);
    return true;
  };
}

suite("a TCP channel", () => {
  test("carries bytes both ways and ends in order", async () => {
    const mesh = new FakeMesh();
    mesh.tcp.set("tcp::7", echo);
    const connection = await mesh.client().connect({ node: "web-1", port: 7 });
    const sent = pattern(3 * mebibyte + 17);
    const [received] = await Promise.all([
      readAll(connection.readable),
      new Blob([sent]).stream().pipeTo(connection.writable),
    ]);
    assert.ok(received.equals(sent));
    await connection.closed;
    const channel = defined(mesh.peer.channels[1]);
    assert.equal(channel.readyState, "closed");
    assert.ok(Math.max(...channel.sentSizes) <= 16 * 1024);
  });

  test("names its destination in the label", async () => {
    const mesh = new FakeMesh();
    const client = mesh.client();
    const hosts = ["", "172.16.0.4", "fd00::1", "[fd00::1]", "localhost", "nas"];
    for (const host of hosts) {
      await client.connect({ node: "web-1", host, port: 22 }).catch(() => {});
    }
    const channels = mesh.peer.channels.slice(1);
    const labels = [
      "tcp::22",
      "tcp:172.16.0.4:22",
      "tcp:[fd00::1]:22",
      "tcp:[fd00::1]:22",
      "tcp:localhost:22",
      "tcp:nas:22",
    ];
    assert.deepEqual(
      channels.map(({ label }) => label),
      labels,
    );
    assert.deepEqual(channels[0]?.options, { protocol: "meshgate.1", ordered: true });
    assert.equal(channels[0]?.binaryType, "arraybuffer");
  });

  test("refuses options that name nothing", async () => {
    const client = new FakeMesh().client();
    await assert.rejects(client.connect({ node: "", port: 80 }), code("invalid_argument", /node/));
    for (const port of [0, -1, 65_536, 1.5, Number.NaN]) {
      await assert.rejects(client.connect({ node: "web-1", port }), code("invalid_argument", /port/));
    }
  });

  test("stops at 1 MiB when the service does not read", async () => {
    const { connection, stream } = await connected();
    const writing = new Blob([pattern(2 * mebibyte)]).stream().pipeTo(connection.writable);
    await until(() => stream.received === mebibyte);
    await settled();
    assert.equal(stream.received, mebibyte);
    stream.send({ type: "window", bytes: 100 });
    await until(() => stream.received === mebibyte + 100);
    await settled();
    assert.equal(stream.received, mebibyte + 100);
    while (stream.received < 2 * mebibyte) {
      await stream.read();
    }
    await writing;
  });

  test("stops at 1 MiB in the browser's own queue", async () => {
    const { mesh, connection, stream } = await connected();
    // More credit than the queue may hold, so that only the queue can be what stops it.
    stream.send({ type: "window", bytes: 8 * mebibyte });
    await settled();
    mesh.peer.wire.hold();
    const writing = new Blob([pattern(3 * mebibyte)]).stream().pipeTo(connection.writable);
    const channel = defined(mesh.peer.channels[1]);
    await until(() => channel.bufferedAmount >= mebibyte);
    await settled();
    assert.equal(channel.bufferedAmount, mebibyte);
    mesh.peer.wire.release();
    await writing;
    await until(() => stream.received === 3 * mebibyte);
  });

  test("makes the service wait while the page does not read", async () => {
    const { connection, stream } = await connected();
    const writing = stream.write(pattern(2 * mebibyte)).then(() => stream.fin());
    await until(() => stream.sent === mebibyte);
    await settled();
    assert.equal(stream.sent, mebibyte);
    assert.deepEqual(stream.controls, []);

    const reader = connection.readable.getReader();
    let read = 0;
    while (read < mebibyte / 4 - 1) {
      assert.deepEqual(stream.controls, []);
      read += defined((await reader.read()).value).byteLength;
    }
    await until(() => stream.controls.length > 0);
    assert.deepEqual(stream.controls, [{ type: "window", bytes: read }]);
    reader.releaseLock();
    const rest = await readAll(connection.readable);
    assert.ok(rest.equals(pattern(2 * mebibyte).subarray(read)));
    await writing;
  });

  test("breaks when it gets more than it gave credit for", async () => {
    const { connection, stream } = await connected();
    for (let sent = 0; sent <= mebibyte; sent += 16_384) {
      stream.channel.send(new Uint8Array(16_384));
    }
    await assert.rejects(connection.closed, code("internal", /credit/));
    await until(() => stream.controls.length > 0);
    assert.equal(stream.controls[0]?.type, "reset");
  });

  test("goes on reading after writing has ended", async () => {
    const { connection, stream } = await connected();
    await connection.writable.close();
    assert.equal(await stream.read(), undefined);
    await stream.write(pattern(50_000));
    stream.fin();
    assert.equal((await readAll(connection.readable)).byteLength, 50_000);
    await connection.closed;
  });

  test("goes on writing after reading has ended", async () => {
    const { connection, stream } = await connected();
    stream.fin();
    assert.equal((await readAll(connection.readable)).byteLength, 0);
    const writer = connection.writable.getWriter();
    await writer.write(pattern(1000));
    assert.equal((await stream.read())?.byteLength, 1000);
    await writer.close();
    await connection.closed;
  });

  test("keeps what came before the end for a reader that is late", async () => {
    const { connection, stream } = await connected();
    await connection.writable.close();
    await stream.write(pattern(50_000));
    stream.fin();
    await connection.closed;
    assert.equal((await readAll(connection.readable)).byteLength, 50_000);
  });

  test("rejects with what the node says", async () => {
    const mesh = new FakeMesh();
    const client = mesh.client();
    await assert.rejects(
      client.connect({ node: "web-1", port: 81 }),
      code("permission_denied", /tcp::81 is not exposed/),
    );
    mesh.tcp.set("tcp::80", (stream) => stream.send({ type: "error", code: "no such code" }));
    await assert.rejects(client.connect({ node: "web-1", port: 80 }), code("unknown", /without saying why/));
  });

  test("breaks when the node resets it", async () => {
    const { connection, stream } = await connected();
    const reader = connection.readable.getReader();
    const reading = reader.read();
    stream.send({ type: "reset", code: "unavailable", message: "connection reset by peer" });
    await assert.rejects(reading, code("unavailable", /reset by peer/));
    await assert.rejects(connection.closed, code("unavailable", /reset by peer/));
    await assert.rejects(
      connection.writable.getWriter().write(pattern(1)),
      code("unavailable", /reset by peer/),
    );
  });

  test("breaks when the channel ends without a word", async () => {
    const { connection, stream } = await connected();
    stream.channel.close();
    await assert.rejects(connection.closed, code("unavailable", /closed the connection/));
  });

  test("breaks on messages that are none", async () => {
    for (const message of [
      "no JSON",
      "[]",
      '{"type":1}',
      '{"type":"window","bytes":-1}',
      '{"type":"window"}',
    ]) {
      const { connection, stream } = await connected();
      stream.channel.send(message.startsWith("{") || message === "[]" ? message : JSON.stringify(message));
      await assert.rejects(connection.closed, code("internal"));
    }
  });

  test("ignores words of later versions", async () => {
    const { connection, stream } = await connected();
    stream.send({ type: "priority", level: 3 });
    await stream.write(pattern(10));
    assert.equal((await connection.readable.getReader().read()).value?.byteLength, 10);
  });

  test("takes all kinds of bytes, and nothing else", async () => {
    const { connection, stream } = await connected();
    const writer: WritableStreamDefaultWriter<unknown> = connection.writable.getWriter();
    const shared = new Uint8Array(new SharedArrayBuffer(4));
    shared.fill(7);
    await writer.write(pattern(8).subarray(2, 5));
    await writer.write(new DataView(new ArrayBuffer(3)));
    await writer.write(new ArrayBuffer(5));
    await writer.write(shared);
    await writer.write(new Uint8Array(0));
    await until(() => stream.received === 15);
    await assert.rejects(writer.write("text"), code("invalid_argument", /TextEncoderStream/));
    await assert.rejects(connection.closed, code("invalid_argument"));
    await until(() => stream.controls.some(({ type }) => type === "reset"));
  });

  test("close() delivers what was written and discards what comes", async () => {
    const { connection, stream } = await connected();
    const reader = connection.readable.getReader();
    const reading = reader.read();
    await connection.writable.getWriter().write(pattern(20_000));
    const closing = connection.close();
    await assert.rejects(reading, code("canceled"));
    await until(() => stream.controls.length > 0);
    assert.equal(stream.received, 20_000);
    assert.deepEqual(stream.controls, [{ type: "fin" }]);
    await stream.write(pattern(5000));
    stream.fin();
    await Promise.all([closing, connection.closed, connection.close()]);
  });

  test("close() ends a write that waits for credit", async () => {
    const { connection } = await connected();
    const writer = connection.writable.getWriter();
    const writing = writer.write(pattern(2 * mebibyte));
    await settled();
    void connection.close();
    await assert.rejects(writing, code("canceled"));
  });

  test("close() waits 10 s for the node, and no longer", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const { connection, stream } = await connected();
    const closing = connection.close();
    mock.timers.tick(9999);
    await settled();
    assert.equal(stream.channel.readyState, "open");
    mock.timers.tick(1);
    await closing;
    await until(() => stream.channel.readyState === "closed");
  });

  test("is closed by await using", async () => {
    const { connection, stream } = await connected();
    await Promise.all([
      connection[Symbol.asyncDispose](),
      until(() => stream.controls.length > 0).then(() => stream.fin()),
    ]);
    assert.equal(stream.channel.readyState, "closed");
  });

  test("lets the service go on when reading is cancelled", async () => {
    const { connection, stream } = await connected();
    const writing = stream.write(pattern(3 * mebibyte));
    await until(() => stream.sent === mebibyte);
    await connection.readable.cancel();
    await writing;
    await connection.writable.getWriter().write(pattern(10));
    await until(() => stream.received === 10);
  });

  test("ends when the page neither reads nor writes any more", async () => {
    const { connection, stream } = await connected();
    await connection.readable.cancel();
    await connection.writable.close();
    await until(() => stream.controls.length > 0);
    stream.fin();
    await connection.closed;
  });

  test("aborting the writable breaks it", async () => {
    const { connection, stream } = await connected();
    await connection.writable.abort(new Error("no longer needed"));
    await assert.rejects(connection.closed, code("canceled"));
    await until(() => stream.controls.length > 0);
    assert.equal(stream.controls[0]?.type, "reset");
  });

  test("a signal breaks it at any time", async () => {
    const mesh = new FakeMesh();
    mesh.tcp.set("tcp::80", (stream) => stream.open());
    const abort = new AbortController();
    const connection = await mesh.client().connect({ node: "web-1", port: 80, signal: abort.signal });
    const stream = defined(mesh.streams.get("tcp::80"));
    abort.abort(new Error("enough"));
    await assert.rejects(connection.closed, (error: MeshgateError) => {
      assert.equal(error.code, "canceled");
      assert.equal((error.cause as Error).message, "enough");
      return true;
    });
    await until(() => stream.controls.length > 0);
    assert.equal(stream.controls[0]?.code, "canceled");
  });

  test("survives random sizes and a reader that stops and goes", async () => {
    const mesh = new FakeMesh();
    mesh.tcp.set("tcp::7", echo);
    const connection = await mesh.client().connect({ node: "web-1", port: 7 });
    const sent = pattern(2 * mebibyte);
    let seed = 1;
    const random = (below: number) => {
      seed = (seed * 48_271) % 0x7fffffff;
      return seed % below;
    };
    const writing = (async () => {
      const writer = connection.writable.getWriter();
      for (let offset = 0; offset < sent.byteLength; ) {
        const end = Math.min(sent.byteLength, offset + random(60_000));
        await writer.write(sent.subarray(offset, end));
        offset = end;
      }
      await writer.close();
    })();
    const received: Uint8Array[] = [];
    for await (const chunk of connection.readable) {
      received.push(chunk);
      for (let pause = random(4); pause > 0; pause--) {
        await setImmediate();
      }
    }
    await writing;
    assert.ok(Buffer.concat(received).equals(sent));
  });
});

suite("a UDP channel", () => {
  test("carries datagrams both ways, each as a whole", async () => {
    const mesh = new FakeMesh();
    mesh.udp.set("udp::53", (datagram, reply) => reply(datagram));
    const datagrams = await mesh.client().connectUdp({ node: "dns-1", port: 53 });
    const channel = defined(mesh.peer.channels[1]);
    assert.deepEqual(channel.options, { protocol: "meshgate.1", ordered: false, maxRetransmits: 0 });
    const writer = datagrams.writable.getWriter();
    const reader = datagrams.readable.getReader();
    for (const size of [1, 0, 40_000, 65_507]) {
      await writer.write(pattern(size));
      assert.equal((await reader.read()).value?.byteLength, size);
    }
    await datagrams.close();
    await datagrams.closed;
  });

  test("rejects with what the node says over the control channel", async () => {
    const mesh = new FakeMesh();
    await assert.rejects(
      mesh.client().connectUdp({ node: "dns-1", port: 54 }),
      code("permission_denied", /not exposed/),
    );
  });

  test("does not wait for ever for a reason", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = new FakeMesh();
    mesh.onUdp = (channel) => channel.close();
    const connecting = mesh.client().connectUdp({ node: "dns-1", port: 53 });
    await until(() => mesh.peers.length === 1 && mesh.peer.channels[1]?.readyState === "closed");
    mock.timers.tick(2000);
    await assert.rejects(connecting, code("unavailable", /closed the connection/));
  });

  test("drops what is not read in time, and says so", async () => {
    const mesh = new FakeMesh();
    mesh.udp.set("udp::9", (_, reply) => {
      for (let count = 0; count < 20; count++) {
        reply(new Uint8Array(60_000));
      }
      for (let count = 0; count < 5000; count++) {
        reply(new Uint8Array(0));
      }
    });
    const datagrams = await mesh.client().connectUdp({ node: "dns-1", port: 9 });
    await datagrams.writable.getWriter().write(pattern(1));
    await until(() => datagrams.dropped === 3 + (5000 - (4096 - 17)));
    const reader = datagrams.readable.getReader();
    for (let count = 0; count < 17; count++) {
      assert.equal((await reader.read()).value?.byteLength, 60_000);
    }
  });

  test("refuses what is no datagram", async () => {
    const mesh = new FakeMesh();
    mesh.udp.set("udp::53", () => {});
    const datagrams = await mesh.client().connectUdp({ node: "dns-1", port: 53 });
    await assert.rejects(
      datagrams.writable.getWriter().write(pattern(65_508)),
      code("invalid_argument", /65507/),
    );
  });

  test("ends when the node ends it; what came can still be read", async () => {
    const mesh = new FakeMesh();
    mesh.udp.set("udp::53", (datagram, reply) => reply(datagram));
    const datagrams = await mesh.client().connectUdp({ node: "dns-1", port: 53 });
    await datagrams.writable.getWriter().write(pattern(5));
    await settled();
    defined(mesh.peer.channels[1]?.other).close();
    await datagrams.closed;
    assert.equal((await readAll(datagrams.readable)).byteLength, 5);
  });
});
