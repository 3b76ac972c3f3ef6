// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Path } from "./backend.ts";
import type { Reach } from "./graph/model.ts";
import type { LinkPath } from "./mesh.ts";
import {
  explainBreak,
  explainConnect,
  explainSignIn,
  explainStatus,
  explainWatch,
  type Problem,
  showToken,
} from "./problem.ts";
import { FakeError } from "./testing/fakeerror.ts";
import {
  describeEnd,
  explainPath,
  farEnd,
  featureWord,
  joinAdvice,
  linkPathDetail,
  linkPathName,
  pathName,
  pathReaches,
  progress,
  serviceName,
  speaksHttp,
} from "./words.ts";

const codes = [
  "canceled",
  "unknown",
  "invalid_argument",
  "deadline_exceeded",
  "not_found",
  "permission_denied",
  "resource_exhausted",
  "unimplemented",
  "internal",
  "unavailable",
  "data_loss",
  "unauthenticated",
];

function assertSentences(problem: Problem): void {
  for (const text of [problem.text, problem.next]) {
    assert.match(text, /^\S.*\.$/s, `not a sentence: ${text}`);
  }
}

test("every error says what happened and what to do, in sentences", () => {
  const target = { node: "nas", host: "", port: 22 };
  for (const code of codes) {
    const error = new FakeError(code, "cause");
    assertSentences(explainSignIn(error));
    assertSentences(explainWatch(error));
    assertSentences(explainStatus(error, "nas"));
    assertSentences(explainConnect(error, target));
    assertSentences(explainBreak(error, target));
    assert.equal(explainWatch(error).code, code);
  }
  assertSentences(explainStatus(undefined, "phone", { stock: true }));
  const barred = explainStatus(new FakeError("unavailable", "no way"), "nas", {
    barred: { nodeId: "nas", acl: "" },
  });
  assertSentences(barred);
  const roleless = explainConnect(
    new FakeError("permission_denied", '"eve" has no role that grants put'),
    target,
  );
  assertSentences(roleless);
  assert.match(roleless.next, /rolebindings/);
  assert.doesNotMatch(roleless.next, /exposes/);
  assert.match(barred.text, /network ACLs/);
  assertSentences(explainConnect("just a string", target));
  assertSentences(explainConnect(undefined, target));
});

test("a refused token comes with the command that shows a good one", () => {
  assert.equal(explainSignIn(new FakeError("unauthenticated", "")).command, showToken);
});

test("what the other side said is kept, made safe and short", () => {
  const said = explainConnect(new FakeError("unavailable", `[unavailable] dial\u202E ${"x".repeat(900)}`), {
    node: "nas",
    host: "10.0.0.5",
    port: 22,
  });
  assert.match(said.detail, /^dial\\u\{202e\} x+$/);
  assert.equal(said.detail.length, 500);
  assert.equal(said.text, "Nothing answers at 10.0.0.5:22 through nas.");
});

test("the code is not said twice", () => {
  const said = explainConnect(
    new FakeError("permission_denied", "permission denied: port 9 is not exposed"),
    {
      node: "nas",
      host: "",
      port: 9,
    },
  );
  assert.equal(said.detail, "port 9 is not exposed");
});

test("an abort by the browser itself counts as cancelled", () => {
  const error = explainConnect(new DOMException("gone", "AbortError"), { node: "a", host: "", port: 1 });
  assert.equal(error.text, "You stopped this connection.");
  assert.equal(error.detail, "");
});

test("progress follows the way to a node", () => {
  const states = (way: Parameters<typeof progress>[0]) =>
    progress(way)
      .map(({ state }) => state)
      .join(" ");
  assert.equal(states(undefined), "active todo todo todo");
  assert.equal(states({ node: "a", state: "connecting", step: "signaling" }), "active todo todo todo");
  assert.equal(states({ node: "a", state: "connecting", step: "checking" }), "done active todo todo");
  assert.equal(states({ node: "a", state: "connecting", step: "securing" }), "done done active todo");
  assert.equal(states({ node: "a", state: "connected" }), "done done done active");
});

test("paths are explained by their candidates", () => {
  const end = { type: "host", protocol: "udp", address: "" };
  const path = (part: Partial<Path>): Path => ({
    kind: "direct",
    rttMs: 1,
    local: end,
    remote: end,
    ...part,
  });
  const node = { stock: false, reach: "online" } as const;
  assert.match(explainPath(path({}), node), /no NAT/);
  assert.equal(
    explainPath(path({ local: { ...end, type: "srflx", address: "198.51.100.23:54012" } }), node),
    "Packets go straight between this browser and the node, through the NATs in between.",
  );
  assert.match(
    explainPath(path({ kind: "relayed", local: { ...end, type: "relay", protocol: "tls" } }), node),
    /relay over TLS/,
  );
  assert.match(
    explainPath(path({ kind: "relayed", local: { ...end, type: "relay" } }), node),
    /No direct path/,
  );
  assert.equal(describeEnd(end), "hidden by the browser (own address, UDP)");
  // Also without any NAT: browsers that hide their own address have nothing else to show.
  const seen = describeEnd({ type: "srflx", protocol: "udp", address: "127.0.0.1:49777" });
  assert.equal(seen, "127.0.0.1:49777 (address seen from outside, UDP)");
  assert.equal(describeEnd({ type: "new", protocol: "x", address: "1.2.3.4:5" }), "1.2.3.4:5 (new, X)");
});

test("a NAT is told of only where the candidates show one", () => {
  const node = { stock: false, reach: "gateway" } as const;
  const seen = (local: string, remote = "198.51.100.7:3478", type = "prflx") =>
    explainPath(
      {
        kind: "direct",
        rttMs: 1,
        local: { type, protocol: "udp", address: local },
        remote: { type: "host", protocol: "udp", address: remote },
      },
      node,
    );
  const straight = "Packets go straight between this browser and the gateway";
  for (const type of ["srflx", "prflx"]) {
    assert.equal(seen("203.0.113.9:4000", undefined, type), `${straight}, through the NATs in between.`);
  }
  for (const [local, remote] of [
    ["127.0.0.1:4000", "127.0.0.1:3478"],
    ["203.0.113.9:4000", "203.0.113.9:3478"],
    ["192.168.1.20:4000", "192.168.1.5:3478"],
    ["10.1.2.3:4000", "198.51.100.7:3478"],
    ["172.31.0.4:1", "198.51.100.7:3478"],
    ["100.64.0.4:1", "198.51.100.7:3478"],
    ["169.254.0.4:1", "198.51.100.7:3478"],
    ["[2001:db8::1]:4000", "[2001:db8::2]:3478"],
    ["", "198.51.100.7:3478"],
  ] as const) {
    assert.equal(seen(local, remote), `${straight}.`, `${local} ${remote}`);
  }
});

test("the path of a plain peer ends at the gateway", () => {
  const end = { type: "host", protocol: "udp", address: "127.0.0.1:1" };
  const direct: Path = { kind: "direct", rttMs: 1, local: end, remote: end };
  const peer = (reach: Reach) => ({ stock: true, reach });
  assert.equal(explainPath(direct, peer("online")), "Direct to the gateway; from there over WireGuard.");
  assert.equal(
    explainPath(direct, peer("waiting")),
    "Direct to the gateway; from there nothing gets through over WireGuard yet, because the peer has not shaken hands.",
  );
  assert.match(
    explainPath(direct, peer("down")),
    /nothing gets through over WireGuard, because .* too old\.$/,
  );
  assert.equal(
    explainPath({ ...direct, local: { ...end, type: "srflx", address: "203.0.113.9:1" } }, peer("online")),
    "Direct to the gateway, through the NATs in between; from there over WireGuard.",
  );
  assert.equal(
    explainPath(
      { ...direct, kind: "relayed", local: { ...end, type: "relay", protocol: "tls" } },
      peer("online"),
    ),
    "UDP does not get out of this network, so packets go to the gateway through a TURN relay over TLS; from there over WireGuard.",
  );
  assert.equal(pathReaches(peer("online")), "to the gateway");
  assert.equal(pathReaches({ stock: false, reach: "gateway" }), "");
  assert.equal(farEnd(peer("down")), "Gateway");
  assert.equal(farEnd({ stock: false, reach: "gateway" }), "Gateway");
  assert.equal(farEnd({ stock: false, reach: "online" }), "There");
});

test("a plain peer is not told to join as itself", () => {
  const { text, next, command } = explainStatus(undefined, "phone", { stock: true });
  assert.equal(command, "");
  assert.doesNotMatch(text + next, /join|TOKEN/);
  assert.match(next, /once its WireGuard runs/);
  assert.doesNotMatch(explainStatus(undefined, "phone", { stock: true, reach: "online" }).next, /once/);
});

test("joining over TLS names the pin of a self-signed gateway", () => {
  assert.deepEqual(joinAdvice("https://10.0.0.1:8443"), {
    command: "meshgate join https://10.0.0.1:8443 --token TOKEN",
    pin: "--pin sha256:HEX",
  });
  assert.equal(joinAdvice("http://localhost:8080").pin, "");
});

test("services and features have names", () => {
  assert.equal(serviceName({ protocol: "tcp", port: 5432, kind: "" }), "tcp 5432");
  assert.equal(serviceName({ protocol: "tcp", port: 80, kind: "http" }), "http");
  assert.ok(speaksHttp({ kind: "http", port: 1234 }));
  assert.ok(speaksHttp({ kind: "", port: 8080 }));
  assert.ok(!speaksHttp({ kind: "ssh", port: 80 }));
  assert.equal(featureWord({ name: "TURN_SERVER", port: 1 }), "TURN server");
  assert.equal(featureWord({ name: "NEW_THING", port: 1 }), "NEW_THING");
});

test("the path of a link says who carries packets, and why it is not direct", () => {
  const nothing = { via: "", transport: "", address: "", rttMs: undefined, since: undefined, reason: "" };
  const cases: [LinkPath, string][] = [
    [{ ...nothing, kind: "direct", address: "203.0.113.7:51820" }, "direct to 203.0.113.7:51820"],
    [{ ...nothing, kind: "direct" }, "direct"],
    [{ ...nothing, kind: "relayed", via: "gw1", transport: "TLS" }, "over TURN/TLS of gw1"],
    [{ ...nothing, kind: "relayed", via: "gw1" }, "over TURN of gw1"],
    [{ ...nothing, kind: "relayed" }, "inside of another connection"],
    [{ ...nothing, kind: "carried", via: "gw1" }, "by way of gw1"],
    [{ ...nothing, kind: "none" }, "no path"],
  ];
  for (const [path, want] of cases) {
    assert.equal(pathName(path), want);
  }
  const link = {
    nodeId: "x",
    online: true,
    endpoint: "192.0.2.1:1",
    lastHandshake: undefined,
    receiveBytes: 0,
    transmitBytes: 0,
  };
  assert.equal(linkPathName(link), "192.0.2.1:1");
  assert.equal(linkPathName({ ...link, endpoint: "" }), "not known yet");
  assert.equal(linkPathDetail(link, 0), "");
  const path: LinkPath = {
    ...nothing,
    kind: "relayed",
    via: "gw1",
    rttMs: 12.3,
    since: new Date(0),
    reason: "UDP is blocked",
  };
  assert.equal(
    linkPathDetail({ ...link, path }, 61_000),
    "12 ms round trip, since 1 min 1 s, UDP is blocked",
  );
});
