// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, HttpRequest, Target } from "./backend.ts";
import { bodyLimit, inertDocument, parseHeaders, sendHttp } from "./http.ts";
import { createFake } from "./testing/fake.ts";
import { FakeError } from "./testing/fakeerror.ts";
import { inventMesh } from "./testing/invent.ts";
import { until } from "./testing/until.ts";

const fake = (): Backend => createFake("t", { snapshot: inventMesh(30) });
const to: Target = { node: "nas", host: "", port: 80 };
const get = (path: string): HttpRequest => ({ method: "GET", path, headers: [], body: undefined });

test("a response is shown with status, headers, type, body and time", async () => {
  let ticks = 0;
  const exchange = sendHttp(fake(), to, get("/"), () => ticks++ * 10);
  const { reply } = await until(exchange, "it is done", ({ phase }) => phase === "done");
  assert.equal(reply?.status, 200);
  assert.equal(reply?.type, "text/html");
  assert.ok(reply?.headers.some(([name]) => name === "server"));
  assert.match(new TextDecoder().decode(reply?.body), /It works/);
  assert.equal(reply?.tookMs, 20);
  assert.equal(reply?.cut, false);
});

test("method, headers and body are sent", async () => {
  const exchange = sendHttp(fake(), to, {
    method: "POST",
    path: "/json",
    headers: [["x-a", "1"]],
    body: "data",
  });
  const { reply } = await until(exchange, "it is done", ({ phase }) => phase === "done");
  assert.deepEqual(JSON.parse(new TextDecoder().decode(reply?.body)), {
    method: "POST",
    body: "data",
    headers: [["x-a", "1"]],
  });
});

test("a failure says why", async () => {
  const exchange = sendHttp(fake(), { ...to, port: 81 }, get("/"));
  const { problem } = await until(exchange, "it failed", ({ phase }) => phase === "failed");
  assert.equal(problem?.text, "Nothing answers at port 81 of nas.");
});

test("a long body is cut and the rest is not fetched", async () => {
  let cancelled = false;
  let sent = 0;
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      sent += 65_536;
      controller.enqueue(new Uint8Array(65_536).fill(97));
    },
    cancel() {
      cancelled = true;
    },
  });
  const exchange = sendHttp({ ...fake(), fetch: async () => new Response(body) }, to, get("/"));
  const { reply } = await until(exchange, "it is done", ({ phase }) => phase === "done");
  assert.equal(reply?.cut, true);
  assert.equal(reply?.body.length, bodyLimit);
  assert.ok(cancelled);
  assert.ok(sent < bodyLimit + 5 * 65_536);
});

test("a body that breaks off keeps the head and says why", async () => {
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      controller.error(new FakeError("data_loss", "the response ended early"));
    },
  });
  const exchange = sendHttp(
    { ...fake(), fetch: async () => new Response(body, { status: 200 }) },
    to,
    get("/"),
  );
  const state = await until(exchange, "it failed", ({ phase }) => phase === "failed");
  assert.equal(state.reply?.status, 200);
  assert.equal(state.problem?.code, "data_loss");
});

test("a request can be cancelled", async () => {
  const backend: Backend = {
    ...fake(),
    fetch: (_to, _request, signal) =>
      new Promise((_resolve, reject) => {
        signal.addEventListener("abort", () => reject(new FakeError("canceled", "aborted")));
      }),
  };
  const exchange = sendHttp(backend, to, get("/"));
  exchange.cancel();
  const { problem } = await until(exchange, "it failed", ({ phase }) => phase === "failed");
  assert.equal(problem?.code, "canceled");
  assert.equal(problem?.text, "You stopped this connection.");
});

test("parseHeaders reads lines and points out what it cannot read", () => {
  assert.deepEqual(parseHeaders("Accept: text/html\n\n x-a :1:2 \r\nEmpty:"), {
    headers: [
      ["Accept", "text/html"],
      ["x-a", "1:2"],
      ["Empty", ""],
    ],
    wrong: [],
  });
  assert.deepEqual(parseHeaders("no colon\nbad name: 1\n: x").wrong, ["no colon", "bad name: 1", ": x"]);
});

test("an inert document begins with a policy that forbids everything", () => {
  const policy = inertDocument("<script>x</script>").indexOf("default-src 'none'");
  assert.ok(policy > 0 && policy < inertDocument("<script>x</script>").indexOf("<script>"));
});
