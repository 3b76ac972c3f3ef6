// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Path } from "./backend.ts";
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
import { describeEnd, explainPath, featureWord, progress, serviceName, speaksHttp } from "./words.ts";

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
    assertSentences(explainStatus(error, "nas", false));
    assertSentences(explainConnect(error, target));
    assertSentences(explainBreak(error, target));
    assert.equal(explainWatch(error).code, code);
  }
  assertSentences(explainStatus(undefined, "phone", true));
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
  assert.match(explainPath(path({})), /no NAT/);
  assert.match(explainPath(path({ local: { ...end, type: "srflx" } })), /NATs in between/);
  assert.match(
    explainPath(path({ kind: "relayed", local: { ...end, type: "relay", protocol: "tls" } })),
    /relay over TLS/,
  );
  assert.match(explainPath(path({ kind: "relayed", local: { ...end, type: "relay" } })), /No direct path/);
  assert.equal(describeEnd(end), "hidden by the browser (own address, UDP)");
  assert.equal(describeEnd({ type: "new", protocol: "x", address: "1.2.3.4:5" }), "1.2.3.4:5 (new, X)");
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
