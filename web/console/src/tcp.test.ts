// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, Connection, Target } from "./backend.ts";
import { openTcp } from "./tcp.ts";
import { createFake } from "./testing/fake.ts";
import { FakeError } from "./testing/fakeerror.ts";
import { inventMesh } from "./testing/invent.ts";
import { until } from "./testing/until.ts";

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);
const fake = (): Backend => createFake("t", { snapshot: inventMesh(30) });
const to = (port: number, node = "nas"): Target => ({ node, host: "", port });

test("bytes go out and come back", async () => {
  const session = openTcp(fake(), to(7));
  await until(session, "it is open", ({ phase }) => phase === "open");
  await session.send(utf8("hello"));
  const { transcript } = await until(session, "the echo is here", (state) => state.transcript.received === 5);
  assert.deepEqual(
    transcript.entries.map(({ direction, text }) => [direction, text]),
    [
      ["out", "hello"],
      ["in", "hello"],
    ],
  );
  assert.equal((await session.path())?.kind, "direct");
  session.close();
  const closed = await until(session, "it is closed", ({ phase }) => phase === "closed");
  assert.equal(closed.problem, undefined);
  assert.equal(await session.path(), undefined);
});

test("finish half-closes, then both sides are done", async () => {
  const session = openTcp(fake(), to(7));
  await until(session, "it is open", ({ phase }) => phase === "open");
  await session.finish();
  const closed = await until(session, "it is closed", ({ phase }) => phase === "closed");
  assert.equal(closed.finished, true);
  assert.equal(closed.ended, true);
  assert.equal(closed.problem, undefined);
  await session.send(utf8("too late"));
  await session.finish();
});

test("a refused connection says why", async () => {
  const session = openTcp(fake(), to(25));
  const closed = await until(session, "it is closed", ({ phase }) => phase === "closed");
  assert.equal(closed.problem?.code, "permission_denied");
  assert.equal(closed.problem?.text, "The mesh does not let you reach port 25 of nas.");
});

test("a connection that breaks says why", async () => {
  const session = openTcp(fake(), to(9));
  await until(session, "it is open", ({ phase }) => phase === "open");
  await session.send(utf8("x"));
  const closed = await until(session, "it is closed", ({ phase }) => phase === "closed");
  assert.equal(closed.problem?.code, "unavailable");
  assert.equal(closed.problem?.text, "The connection to port 9 of nas broke off.");
  assert.equal(closed.problem?.detail, "connection reset by peer");
});

test("an attempt can be stopped", async () => {
  const backend: Backend = {
    ...fake(),
    connect: (_, signal) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener("abort", () => reject(new FakeError("canceled", "aborted")));
      }),
  };
  const session = openTcp(backend, to(7));
  session.close();
  const closed = await until(session, "it is closed", ({ phase }) => phase === "closed");
  assert.equal(closed.problem?.text, "You stopped this connection.");
});

test("closing does not wait for what was not sent, and is harmless when repeated", async () => {
  let closes = 0;
  const connection: Connection = {
    readable: new ReadableStream(),
    // Never accepts anything.
    writable: new WritableStream({ write: () => new Promise(() => undefined) }),
    closed: new Promise(() => undefined),
    close: async () => {
      closes++;
    },
    path: () => Promise.reject(new FakeError("unavailable", "gone")),
  };
  const session = openTcp({ ...fake(), connect: async () => connection }, to(7));
  await until(session, "it is open", ({ phase }) => phase === "open");
  void session.send(utf8("stuck"));
  session.close();
  session.close();
  await until(session, "it is closed", ({ phase }) => phase === "closed");
  assert.equal(closes, 1);
});

test("clear empties the transcript and keeps the counts", async () => {
  const session = openTcp(fake(), to(22));
  await until(session, "the banner is here", ({ transcript }) => transcript.received > 0);
  session.clear();
  const { transcript } = await until(
    session,
    "it is empty",
    (state) => state.transcript.entries.length === 0,
  );
  assert.ok(transcript.received > 0);
});
