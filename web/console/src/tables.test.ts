// SPDX-License-Identifier: Apache-2.0

// What the tables and the search show, over an invented mesh.

import assert from "node:assert/strict";
import { test } from "node:test";
import { describeMesh } from "./graph/model.ts";
import { filterLinks, linkRows, linkValues, nextOrder, nodeValues, relayValues, sortRows } from "./rows.ts";
import { searchNodes, searchRelays } from "./search.ts";
import { inventMesh } from "./testing/invent.ts";
import { inventRelays } from "./testing/inventrelays.ts";

const mesh = describeMesh(inventMesh(30));

test("a click on a column sorts by it, a second click turns it round", () => {
  const first = nextOrder<string>({ key: "name", descending: false }, "state");
  assert.deepEqual(first, { key: "state", descending: false });
  assert.deepEqual(nextOrder(first, "state"), { key: "state", descending: true });
  assert.deepEqual(nextOrder({ key: "state", descending: true }, "state"), {
    key: "state",
    descending: false,
  });
});

test("every column of nodes sorts, both ways", () => {
  for (const key of Object.keys(nodeValues) as (keyof typeof nodeValues)[]) {
    const up = sortRows(mesh.nodes, { key, descending: false }, nodeValues);
    const down = sortRows(mesh.nodes, { key, descending: true }, nodeValues);
    const values = (rows: typeof up) => rows.map(nodeValues[key]);
    assert.equal(up.length, mesh.nodes.length);
    assert.deepEqual(values(up), values(down).reverse(), key);
  }
});

test("sorting by state puts what is down first", () => {
  const rows = sortRows(mesh.nodes, { key: "state", descending: false }, nodeValues);
  assert.deepEqual(
    rows.slice(0, 3).map(({ reach }) => reach),
    ["down", "down", "waiting"],
  );
});

test("addresses sort by number", () => {
  const rows = sortRows(mesh.nodes, { key: "address", descending: false }, nodeValues);
  assert.deepEqual(rows.map(nodeValues.address).slice(0, 11).at(-1), "172.16.1.11");
});

test("rows of links carry the gateway's own link", () => {
  const rows = linkRows(mesh);
  const mine = rows.filter(({ edge }) => [edge.source, edge.target].includes("gateway-1"));
  assert.ok(mine.length > 0 && mine.every(({ link }) => link !== undefined));
  assert.ok(rows.some(({ edge, link }) => edge.state === "unknown" && link === undefined));
  assert.equal(sortRows(rows, { key: "state", descending: false }, linkValues)[0]?.edge.state, "down");
});

test("links are found by either end", () => {
  const found = filterLinks(linkRows(mesh), searchNodes(mesh.nodes, "hotel-pc"));
  assert.deepEqual(
    found.map(({ edge }) => [edge.source, edge.target]),
    [["gateway-1", "hotel-pc"]],
  );
});

test("search looks at names, addresses, zones and services, best match first", () => {
  const names = (query: string) => searchNodes(mesh.nodes, query).map(({ id }) => id);
  assert.deepEqual(names("nas"), ["nas"]);
  assert.deepEqual(names("WEB"), ["web-1", "web-2"]);
  assert.deepEqual(names("172.16.1.4"), ["nas"]);
  assert.deepEqual(names("tcp-echo"), ["hotel-pc", "nas"]);
  assert.deepEqual(names("5432"), ["db-1"]);
  assert.ok(names("office").length > 1);
  assert.equal(names("office")[0], "office-door");
  assert.deepEqual(names("web 80 2"), ["web-2", "web-1"]);
  assert.deepEqual(names("zzz"), []);
  assert.equal(searchNodes(mesh.nodes, "  "), mesh.nodes);
});

test("every column of relays sorts, both ways", () => {
  const { relays } = inventRelays(inventMesh(30));
  for (const key of Object.keys(relayValues) as (keyof typeof relayValues)[]) {
    const values = (descending: boolean) =>
      sortRows(relays, { key, descending }, relayValues).map(relayValues[key]);
    assert.ok(new Set(values(false)).size > 1, key);
    assert.deepEqual(values(false), values(true).reverse(), key);
  }
  const oldest = sortRows(relays, { key: "age", descending: true }, relayValues)[0];
  assert.ok(relays.every(({ since }) => Number(since) >= Number(oldest?.since)));
});

test("relays are found by users, addresses and gateways", () => {
  const { relays } = inventRelays(inventMesh(30));
  const found = (query: string) => searchRelays(relays, query).map(({ user }) => user);
  assert.equal(found("").length, relays.length);
  assert.deepEqual(found("Carol SHOP"), ["shop.carol"]);
  const [first] = relays;
  assert.deepEqual(found(first?.client ?? ""), [first?.user]);
  assert.ok(found("gateway-2").length > 0 && found("gateway-2").length < relays.length);
  assert.deepEqual(found("alice nobody"), []);
});
