// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  connectHash,
  mapHash,
  nodeHash,
  nodesHash,
  parsePort,
  parseRoute,
  parseTarget,
  type Route,
  takeToken,
} from "./route.ts";
import { hostileNames } from "./testing/invent.ts";

test("parseRoute reads every page", () => {
  const cases: [string, Route][] = [
    ["", { page: "map", node: "" }],
    ["#/", { page: "map", node: "" }],
    ["#/?node=nas", { page: "map", node: "nas" }],
    ["#/nodes", { page: "nodes", table: "nodes" }],
    ["#/nodes/", { page: "nodes", table: "nodes" }],
    ["#/nodes?table=links", { page: "nodes", table: "links" }],
    ["#/nodes?table=other", { page: "nodes", table: "nodes" }],
    ["#/nodes/web-1", { page: "node", node: "web-1" }],
    ["#/connect/web-1", { page: "connect", node: "web-1", host: "", port: 0, view: undefined }],
    ["#/connect/web-1?port=22", { page: "connect", node: "web-1", host: "", port: 22, view: undefined }],
    [
      "#/connect/a?host=fd00%3A%3A5&port=80&view=http",
      { page: "connect", node: "a", host: "fd00::5", port: 80, view: "http" },
    ],
    ["#/connect/a?port=70000&view=evil", { page: "connect", node: "a", host: "", port: 0, view: undefined }],
    ["#/connect", { page: "lost", path: "/connect" }],
    ["#/nodes/a/b", { page: "lost", path: "/nodes/a/b" }],
    ["#/relays", { page: "relays" }],
    ["#/relays/gw1", { page: "lost", path: "/relays/gw1" }],
    ["#/access", { page: "lost", path: "/access" }],
    ["#/nodes/%E0%A4%A", { page: "node", node: "%E0%A4%A" }],
  ];
  for (const [hash, want] of cases) {
    assert.deepEqual(parseRoute(hash), want, hash);
  }
});

test("hashes of any name lead back to it", () => {
  for (const name of [...hostileNames, "web 1", "a?b=c&d", "#", "100%", "+"]) {
    assert.deepEqual(parseRoute(nodeHash(name)), { page: "node", node: name });
    assert.deepEqual(parseRoute(mapHash(name)), { page: "map", node: name });
    const target = { host: "fd00::1", port: 8080, view: "tcp" } as const;
    assert.deepEqual(parseRoute(connectHash(name, target)), { page: "connect", node: name, ...target });
  }
  assert.equal(mapHash(), "#/");
  assert.equal(nodesHash("links"), "#/nodes?table=links");
  assert.equal(connectHash("nas"), "#/connect/nas");
});

test("parsePort takes 1 to 65535", () => {
  for (const text of ["1", " 22 ", "65535"]) {
    assert.equal(parsePort(text), Number(text));
  }
  for (const text of ["", "0", "65536", "-1", "22x", "1e3", "0x16", "2 2", "９"]) {
    assert.equal(parsePort(text), undefined, text);
  }
});

test("parseTarget takes a port, a host and port, and IPv6 in brackets", () => {
  const cases: [string, ReturnType<typeof parseTarget>][] = [
    ["22", { host: "", port: 22 }],
    [":22", { host: "", port: 22 }],
    [" db-1:5432 ", { host: "db-1", port: 5432 }],
    ["10.0.0.5:22", { host: "10.0.0.5", port: 22 }],
    ["[fd00::5]:22", { host: "fd00::5", port: 22 }],
    ["fd00::5:22", undefined],
    ["db-1", undefined],
    ["db-1:", undefined],
    ["db-1:0", undefined],
    ["a b:22", undefined],
    ["", undefined],
  ];
  for (const [text, want] of cases) {
    assert.deepEqual(parseTarget(text), want, text);
  }
});

test("takeToken takes a token out of the fragment, and where to go next", () => {
  assert.deepEqual(takeToken("#token=abc"), { token: "abc", rest: "#/" });
  assert.deepEqual(takeToken("#token=a%2Bb+c%3D"), { token: "a+b+c=", rest: "#/" });
  assert.deepEqual(takeToken("#token=abc&to=/nodes/nas"), { token: "abc", rest: "#/nodes/nas" });
  assert.deepEqual(takeToken("#token=abc&to=javascript:alert(1)"), { token: "abc", rest: "#/" });
  assert.equal(takeToken("#/"), undefined);
  assert.equal(takeToken("#/nodes?token=abc"), undefined);
  assert.equal(takeToken(""), undefined);
});
