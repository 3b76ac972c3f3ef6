// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { afterEach, mock, suite, test } from "node:test";
import { Code } from "@connectrpc/connect";
import type { MeshgateError } from "./error.js";
import { closeClients, defined, echo, FakeMesh, rpcError, type ServerStream } from "./testing/mesh.js";
import { chromiumStats } from "./testing/rtc.js";
import { pattern, readAll, settled, until } from "./testing/wait.js";
import type { StateDetail } from "./types.js";

afterEach(async () => {
  await closeClients();
  mock.timers.reset();
});

/** A mesh whose node web-1 accepts connections to port 80. */
function openMesh(): FakeMesh {
  const mesh = new FakeMesh();
  mesh.tcp.set("tcp::80", (stream) => stream.open());
  return mesh;
}

function code(expected: string, message = /./) {
  return (error: MeshgateError) => {
    assert.equal(error.name, "MeshgateError");
    assert.equal(error.code, expected);
    assert.match(error.message, message);
    return true;
  };
}

/** The states and steps in short. */
function summary(states: readonly StateDetail[]): string[] {
  const words = states.map(({ state, step }) => (step === undefined ? state : step));
  return words.filter((word, index) => word !== words[index - 1]);
}

const target = { node: "web-1", port: 80 };

suite("the way to a node", () => {
  test("is one peer connection that all connections share", async () => {
    const mesh = new FakeMesh();
    mesh.tcp.set("tcp::7", echo);
    const client = mesh.client();
    const sent = pattern(10_000);
    await Promise.all(
      Array.from({ length: 20 }, async () => {
        const connection = await client.connect({ node: "web-1", port: 7 });
        const writer = connection.writable.getWriter();
        void writer.write(sent).then(() => writer.close());
        assert.ok((await readAll(connection.readable)).equals(sent));
        await connection.closed;
      }),
    );
    assert.equal(mesh.peers.length, 1);
    await client.connect({ node: "web-2", port: 7 });
    assert.equal(mesh.peers.length, 2);
  });

  test("is introduced by the gateway", async () => {
    const mesh = openMesh();
    mesh.offer = {
      iceServers: [
        {
          urls: ["turn:gate.example.org:3478", "http://not.ice"],
          username: "1700000000:alice",
          credential: "secret",
        },
        { urls: ["stun:gate.example.org:3478"], username: "", credential: "" },
      ],
      stunServers: ["stun:ignored.example.org"],
    };
    mesh.candidates = [
      "candidate:1 1 udp 2 203.0.113.7 5000 typ host",
      JSON.stringify({
        candidate: "candidate:2 1 udp 1 203.0.113.7 5001 typ relay",
        sdpMid: "",
        sdpMLineIndex: 0,
        usernameFragment: null,
      }),
      JSON.stringify({ candidate: "" }),
      "candidate:3 1 udp 1 unusable 1 typ host",
      "{broken",
      "",
    ];
    const client = mesh.client({ iceTransportPolicy: "relay" });
    await client.connect(target);
    assert.deepEqual(mesh.peer.configuration, {
      iceTransportPolicy: "relay",
      iceServers: [
        { urls: ["turn:gate.example.org:3478"], username: "1700000000:alice", credential: "secret" },
        { urls: ["stun:gate.example.org:3478"] },
      ],
    });
    assert.deepEqual(mesh.peer.channels[0]?.options, { negotiated: true, id: 0, protocol: "meshgate.1" });
    assert.equal(mesh.peer.channels[0]?.label, "meshgate-control");
    await until(() => mesh.peer.remoteCandidates.length === 2);
    assert.deepEqual(mesh.peer.remoteCandidates, [
      { candidate: "candidate:1 1 udp 2 203.0.113.7 5000 typ host", sdpMLineIndex: 0 },
      { candidate: "candidate:2 1 udp 1 203.0.113.7 5001 typ relay", sdpMLineIndex: 0 },
    ]);
    await until(() => mesh.halfClosed === 1);
    const [first, answer, candidate, ...rest] = mesh.requests;
    assert.deepEqual([first?.nodeId, first?.inBand, first?.answer], ["web-1", true, ""]);
    assert.deepEqual(JSON.parse(defined(answer).answer), { type: "answer", sdp: "answer" });
    assert.match(JSON.parse(defined(candidate).candidate).candidate, /^candidate:1 1 udp/);
    // The end of candidates is told by the end of the call, never by an empty candidate.
    assert.deepEqual(rest, []);
  });

  test("uses plain STUN servers when there are no others, and no TURN server without credentials", async () => {
    const mesh = openMesh();
    mesh.offer = { stunServers: ["turn:10.0.0.1:3478", "stun:10.0.0.1:3478"] };
    await mesh.client().connect(target);
    assert.deepEqual(mesh.peer.configuration.iceServers, [{ urls: ["stun:10.0.0.1:3478"] }]);
  });

  test("tells of each step", async () => {
    const mesh = openMesh();
    const client = mesh.client();
    const connection = await client.connect(target);
    await until(() => client.states.at(-1)?.state === "connected");
    assert.deepEqual(summary(client.states), ["signaling", "checking", "securing", "connected"]);
    assert.deepEqual(client.states.at(-1)?.path, await connection.path());
    const { candidates } = defined(client.states.filter(({ step }) => step === "securing").at(-1));
    assert.deepEqual(candidates, {
      local: [{ type: "host", protocol: "udp", address: "192.0.2.1", port: 4000 }],
      remote: [{ type: "host", protocol: "udp", address: "203.0.113.7", port: 5000 }],
    });
    await client.close();
    assert.equal(client.states.at(-1)?.state, "closed");
    assert.equal(client.states.at(-1)?.error, undefined);
  });

  test("tells when the path changes", async () => {
    const mesh = openMesh();
    mesh.onPeer = (peer) => {
      peer.stats = chromiumStats("relay");
    };
    const client = mesh.client();
    await client.connect(target);
    await until(() => client.states.at(-1)?.path?.kind === "relayed");
    mesh.peer.stats = chromiumStats("host");
    const changed: unknown = mesh.peer.sctp.transport.iceTransport.onselectedcandidatepairchange;
    assert.ok(typeof changed === "function");
    changed();
    await until(() => client.states.at(-1)?.path?.kind === "direct");
  });

  test("is not tried again when that would not help", async () => {
    const mesh = openMesh();
    const client = mesh.client();
    for (const [rpc, expected] of [
      [Code.PermissionDenied, "permission_denied"],
      [Code.NotFound, "not_found"],
      [Code.Unauthenticated, "unauthenticated"],
      [Code.InvalidArgument, "invalid_argument"],
    ] as const) {
      mesh.failures.push(rpcError(rpc, "ask an admin"));
      await assert.rejects(client.connect(target), code(expected, /^ask an admin$/));
      assert.equal(client.states.at(-1)?.state, "closed");
      assert.equal(client.states.at(-1)?.error?.code, expected);
    }
    assert.equal(mesh.peers.length, 0);
    await client.connect(target);
  });

  test("is tried again, with growing pauses, while somebody waits", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = openMesh();
    const client = mesh.client();
    mesh.failures.push(rpcError(Code.Unavailable, "starting"), rpcError(Code.Unavailable, "starting"));
    const connecting = client.connect(target);
    for (const [attempt, bound] of [
      [1, 500],
      [2, 1000],
    ] as const) {
      await until(
        () => client.states.at(-1)?.state === "waiting" && client.states.at(-1)?.attempt === attempt,
      );
      const { retryInMs = -1, error } = defined(client.states.at(-1));
      assert.ok(retryInMs >= 0 && retryInMs <= bound, `pause of ${retryInMs} ms`);
      assert.equal(error?.message, "starting");
      mock.timers.tick(retryInMs);
    }
    await connecting;
  });

  test("is given up in time, with the reason", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = openMesh();
    mesh.failures.push(
      ...Array.from({ length: 50 }, () => rpcError(Code.Unavailable, "node web-1 is offline")),
    );
    const client = mesh.client({ connectTimeoutMs: 5000 });
    const connecting = client.connect(target);
    for (let waited = 0; waited < 5000; waited += 250) {
      await settled();
      mock.timers.tick(250);
    }
    await assert.rejects(
      connecting,
      code("deadline_exceeded", /web-1 was not reached within 5 s: node web-1 is offline/),
    );
    await until(() => client.states.at(-1)?.state === "closed");
  });

  test("says why there is no path", async () => {
    const mesh = openMesh();
    mesh.onPeer = (peer) => {
      peer.outcome = "failed";
    };
    const client = mesh.client();
    const connecting = client.connect({ ...target, signal: AbortSignal.timeout(20_000) });
    await until(() => client.states.at(-1)?.state === "waiting");
    const text = defined(client.states.at(-1)?.error).message;
    assert.match(text, /no network path to node web-1 .*1 here, 1 there.* offers no relay/);
    await client.close();
    await assert.rejects(connecting, code("canceled"));
    assert.equal(mesh.peers[0]?.connectionState, "closed");
  });

  test("ends an attempt that takes too long", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = openMesh();
    mesh.onPeer = (peer) => {
      peer.outcome = "never";
    };
    const client = mesh.client();
    const connecting = client.connect(target);
    await until(() => mesh.peers.length === 1 && mesh.peer.iceGatheringState === "complete");
    mock.timers.tick(20_000);
    await until(() => client.states.at(-1)?.state === "waiting");
    assert.equal(client.states.at(-1)?.error?.code, "deadline_exceeded");
    assert.equal(mesh.peers[0]?.connectionState, "closed");
    mock.timers.tick(10_000);
    await assert.rejects(
      connecting,
      code("deadline_exceeded", /within 30 s: node web-1 did not answer within 20 s/),
    );
  });

  test("fails when the gateway sends nonsense", async () => {
    for (const offer of [
      "",
      "{",
      "[]",
      '{"type":"answer","sdp":"x"}',
      '{"type":"offer"}',
      '{"type":"offer","sdp":"broken"}',
    ]) {
      const mesh = openMesh();
      mesh.offer = { ...mesh.offer, ...{ offer } };
      const expected = offer.includes("broken") ? "unknown" : "internal";
      await assert.rejects(mesh.client().connect(target), code(expected));
    }
  });

  test("is closed some time after its last connection", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = openMesh();
    const client = mesh.client({ idleTimeoutMs: 1000 });
    const connection = await client.connect(target);
    mock.timers.tick(1000);
    assert.equal(mesh.peer.connectionState, "connected");
    const stream = defined(mesh.streams.get("tcp::80"));
    await Promise.all([connection.close(), until(() => stream.controls.length > 0).then(() => stream.fin())]);
    mock.timers.tick(999);
    assert.equal(mesh.peer.connectionState, "connected");
    mock.timers.tick(1);
    assert.equal(mesh.peer.connectionState, "closed");
    assert.equal(client.states.at(-1)?.state, "closed");
    await client.connect(target);
    assert.equal(mesh.peers.length, 2);
  });

  test("takes its connections along when it breaks, and is looked for again", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = openMesh();
    const client = mesh.client();
    const connections = await Promise.all([client.connect(target), client.connect(target)]);
    mesh.peer.changeState("failed");
    for (const connection of connections) {
      await assert.rejects(connection.closed, code("unavailable", /lost node web-1: the network path broke/));
      await assert.rejects(connection.readable.getReader().read(), code("unavailable"));
    }
    await until(() => client.states.at(-1)?.state === "waiting");
    assert.equal(client.states.at(-1)?.error?.code, "unavailable");
    mock.timers.tick(500);
    await until(() => client.states.at(-1)?.state === "connected");
    assert.equal(mesh.peers.length, 2);
    await client.connect(target);
    assert.equal(mesh.peers.length, 2);
  });

  test("is not looked for for ever", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = openMesh();
    const client = mesh.client();
    await client.connect(target);
    mesh.failures.push(...Array.from({ length: 100 }, () => rpcError(Code.Unavailable, "gone")));
    mesh.peer.changeState("failed");
    for (let waited = 0; waited < 120_000; waited += 5000) {
      await settled();
      mock.timers.tick(5000);
    }
    await until(() => client.states.at(-1)?.state === "closed");
    assert.equal(client.states.at(-1)?.error?.message, "gone");
  });

  test("is lost with a goodbye of whoever was at its far end", async () => {
    const mesh = openMesh();
    mesh.nodes.push({ id: "phone" });
    for (const [node, knowsNodes, message, text] of [
      ["web-1", true, "the node is shutting down", "the node said goodbye: the node is shutting down"],
      [
        "phone",
        true,
        "the node is shutting down",
        "the gateway, which answers for it, said goodbye: the gateway is shutting down",
      ],
      [
        "phone",
        false,
        "the node is shutting down",
        "the node, or the gateway if it answers for it, said goodbye: the node is shutting down",
      ],
      ["phone", true, "", "the gateway, which answers for it, closed the peer connection"],
      ["web-1", true, "", "the node closed the peer connection"],
    ] as const) {
      const client = mesh.client();
      if (knowsNodes) {
        await client.nodes();
      }
      const connection = await client.connect({ node, port: 80 });
      mesh.control(mesh.peer, { type: "goodbye", message });
      defined(mesh.peer.channels[0]?.other).close();
      await assert.rejects(connection.closed, (error: MeshgateError) => {
        assert.equal(error.code, "unavailable");
        assert.equal(error.message, `lost node ${node}: ${text}`);
        return true;
      });
      await client.close();
    }
  });

  test("notices a node that has stopped answering", async () => {
    mock.timers.enable({ apis: ["setInterval"] });
    const mesh = openMesh();
    const connection = await mesh.client().connect(target);
    for (let minute = 0; minute < 8; minute++) {
      mock.timers.tick(15_000);
      await settled();
    }
    assert.equal(mesh.peer.connectionState, "connected");
    mesh.peer.wire.hold();
    mock.timers.tick(15_000);
    mock.timers.tick(15_000);
    assert.equal(mesh.peer.connectionState, "connected");
    mock.timers.tick(15_000);
    await assert.rejects(connection.closed, code("unavailable", /stopped answering/));
  });

  test("answers the pings of the node", async () => {
    const mesh = openMesh();
    await mesh.client().connect(target);
    mesh.control(mesh.peer, { type: "ping", id: 77 });
    const control = defined(mesh.peer.channels[0]);
    await until(() => control.sentControls.some(({ type, id }) => type === "pong" && id === 77));
  });
});

suite("a renewal", () => {
  test("moves new connections over, and lets old ones end", async () => {
    const mesh = openMesh();
    const client = mesh.client();
    const old = await client.connect(target);
    const oldStream = defined(mesh.streams.get("tcp::80"));
    await until(() => client.states.at(-1)?.state === "connected");
    const before = client.states.length;
    mesh.control(mesh.peer, { type: "renew" });
    await until(() => mesh.peers.length === 2 && mesh.peer.connectionState === "connected");
    await settled();
    await client.connect(target);
    assert.equal(mesh.peers[0]?.channels.length, 2);
    assert.equal(mesh.peers[1]?.channels.length, 2);
    assert.deepEqual(summary(client.states.slice(before)), ["connected"]);

    await oldStream.write(pattern(10));
    assert.equal((await old.readable.getReader().read()).value?.byteLength, 10);
    await Promise.all([old.close(), until(() => oldStream.controls.length > 0).then(() => oldStream.fin())]);
    assert.equal(mesh.peers[0]?.connectionState, "closed");
    assert.equal(mesh.peers[1]?.connectionState, "connected");
  });

  test("ends old connections after 10 minutes", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    const mesh = openMesh();
    const client = mesh.client();
    const old = await client.connect(target);
    mesh.control(mesh.peer, { type: "renew" });
    await until(() => mesh.peers.length === 2 && mesh.peers[1]?.connectionState === "connected");
    await settled();
    mock.timers.tick(599_999);
    assert.equal(mesh.peers[0]?.connectionState, "connected");
    mock.timers.tick(1);
    await assert.rejects(old.closed, code("unavailable", /reconnect/));
    assert.equal(mesh.peers[0]?.connectionState, "closed");
  });

  test("leaves the old one in use while there is no new one", async () => {
    const mesh = openMesh();
    const client = mesh.client();
    await client.connect(target);
    mesh.failures.push(rpcError(Code.PermissionDenied, "no longer"));
    mesh.control(mesh.peer, { type: "renew" });
    await until(() => mesh.failures.length === 0);
    await settled();
    await client.connect(target);
    assert.equal(mesh.peers.length, 1);
    assert.equal(client.states.at(-1)?.state, "connected");
  });
});

suite("an abort", () => {
  const reason = new Error("enough");

  test("before anything", async () => {
    const mesh = openMesh();
    await assert.rejects(
      mesh.client().connect({ ...target, signal: AbortSignal.abort(reason) }),
      code("canceled"),
    );
    await settled();
    assert.equal(mesh.peers.length, 0);
  });

  test("while the gateway is asked", async () => {
    const mesh = openMesh();
    const abort = new AbortController();
    mesh.onIntroduction = () => new Promise(() => {});
    const client = mesh.client();
    const connecting = client.connect({ ...target, signal: abort.signal });
    await until(() => client.states.length > 0);
    abort.abort(reason);
    await assert.rejects(connecting, code("canceled"));
    await until(() => client.states.at(-1)?.state === "closed");
    assert.equal(client.states.at(-1)?.error, undefined);
  });

  test("while paths are tried", async () => {
    const mesh = openMesh();
    const abort = new AbortController();
    mesh.onPeer = (peer) => {
      peer.outcome = "never";
    };
    const client = mesh.client();
    const connecting = client.connect({ ...target, signal: abort.signal });
    await until(() => client.states.at(-1)?.step === "checking");
    abort.abort(reason);
    await assert.rejects(connecting, code("canceled"));
    await until(() => mesh.peer.connectionState === "closed");
  });

  test("of one of two who wait leaves the other alone", async () => {
    const mesh = openMesh();
    const abort = new AbortController();
    let proceed = () => {};
    mesh.onIntroduction = () =>
      new Promise<void>((resolve) => {
        proceed = resolve;
      });
    const client = mesh.client();
    const first = client.connect({ ...target, signal: abort.signal });
    const second = client.connect(target);
    await until(() => client.states.length > 0);
    abort.abort(reason);
    await assert.rejects(first, code("canceled"));
    proceed();
    await second;
    assert.equal(mesh.peers.length, 1);
  });

  test("during the pause before the next attempt", async () => {
    const mesh = openMesh();
    mesh.failures.push(rpcError(Code.Unavailable, "starting"));
    mock.timers.enable({ apis: ["setTimeout"] });
    const client = mesh.client();
    const abort = new AbortController();
    const connecting = client.connect({ ...target, signal: abort.signal });
    await until(() => client.states.at(-1)?.state === "waiting");
    abort.abort(reason);
    await assert.rejects(connecting, code("canceled"));
    await until(() => client.states.at(-1)?.state === "closed");
  });

  test("while the node connects to the service", async () => {
    const mesh = new FakeMesh();
    let stream: ServerStream | undefined;
    mesh.tcp.set("tcp::80", (opened) => {
      stream = opened;
    });
    const abort = new AbortController();
    const connecting = mesh.client().connect({ ...target, signal: abort.signal });
    await until(() => stream !== undefined && mesh.peer.channels[1]?.readyState === "open");
    abort.abort(reason);
    await assert.rejects(connecting, code("canceled"));
    await until(() => stream?.channel.readyState === "closed");
    assert.equal(stream?.controls[0]?.type, "reset");
    assert.equal(mesh.peer.connectionState, "connected");
  });

  test("by a timeout is a deadline", async () => {
    const mesh = openMesh();
    mesh.onIntroduction = () => new Promise(() => {});
    await assert.rejects(
      mesh.client().connect({ ...target, signal: AbortSignal.timeout(1) }),
      code("deadline_exceeded"),
    );
  });
});
