// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import type { Link, MeshNode, Presence, Snapshot } from "../mesh.ts";
import { explainReach } from "../words.ts";
import { compareText, describeMesh, isPlainEndpoint, peerName } from "./model.ts";

function node(id: string, part: Partial<MeshNode> = {}): MeshNode {
  return {
    id,
    publicKey: `key-${id}`,
    zone: "",
    addresses: [],
    primaryEndpoint: "",
    endpoints: [],
    features: [{ name: "NODES", port: 1 }],
    services: [],
    joinedAt: undefined,
    ...part,
  };
}

function link(nodeId: string, part: Partial<Link> = {}): Link {
  return {
    nodeId,
    online: true,
    endpoint: "198.51.100.1:51820",
    lastHandshake: undefined,
    receiveBytes: 0,
    transmitBytes: 0,
    ...part,
  };
}

function edge(source: string, target: string, transport: "wireguard" | "ice" = "wireguard") {
  return { source, target, weight: 1, transport };
}

function snapshot(part: Partial<Snapshot>): Snapshot {
  return {
    version: "1",
    gatewayId: "gw",
    domain: "mesh",
    nodes: [],
    edges: [],
    links: [],
    leaderless: false,
    ...part,
  };
}

const reachOf = (mesh: ReturnType<typeof describeMesh>) =>
  Object.fromEntries(
    mesh.nodes.map(({ id, reach, via }) => [id, via === "" ? reach : `${reach} via ${via}`]),
  );

test("describeMesh tells how each node is reached", () => {
  const mesh = describeMesh(
    snapshot({
      nodes: ["gw", "on", "off", "new", "ice", "odd", "hub", "far", "farther", "alone", "turn"].map((id) =>
        node(id),
      ),
      edges: [
        edge("gw", "on"),
        edge("gw", "off"),
        edge("gw", "ice", "ice"),
        edge("gw", "odd"),
        edge("gw", "hub"),
        edge("hub", "far"),
        edge("far", "farther"),
      ],
      links: [
        link("on"),
        link("off", { online: false, lastHandshake: new Date(0) }),
        link("new", { online: false, endpoint: "" }),
        link("ice", { endpoint: "" }),
        link("odd", { endpoint: "data-channel" }),
        link("hub", { endpoint: "[2001:db8::1]:51820" }),
        link("turn", {
          path: {
            kind: "relayed",
            via: "gw",
            transport: "TLS",
            address: "",
            rttMs: undefined,
            since: undefined,
            reason: "UDP is blocked",
          },
        }),
      ],
    }),
  );
  assert.deepEqual(reachOf(mesh), {
    gw: "gateway",
    on: "online",
    off: "down",
    new: "waiting",
    ice: "relayed",
    odd: "relayed",
    turn: "relayed",
    hub: "online",
    far: "relayed via hub",
    farther: "relayed via hub",
    alone: "unknown",
  });
});

test("describeMesh takes from the mesh who is up, and from links how it is reached", () => {
  const now = 1_000_000_000;
  const presence = (
    nodeId: string,
    state: Presence["state"],
    gatewayId = "",
    part: Partial<Presence> = {},
  ): Presence => ({ nodeId, state, gatewayId, lastHeard: undefined, stopped: false, ...part });
  const rests = { online: false, lastHandshake: new Date(0) };
  const fiveMinutesAgo = new Date(now - 300_000);
  const mesh = describeMesh(
    snapshot({
      nodes: ["gw", "gw2", "gw3", "gw4", "near", "far", "gone", "ended", "fresh", "lost"].map((id) =>
        node(id),
      ),
      edges: [edge("gw", "gw2"), edge("gw", "gw3"), edge("gw3", "far"), edge("gw2", "gone")],
      // The links between gateways rest; that to "ended" does not know yet.
      links: [link("gw2", rests), link("gw3", { online: false }), link("gw4"), link("near"), link("ended")],
      presence: [
        presence("gw", "up"),
        presence("gw2", "up"),
        presence("gw3", "up"),
        presence("gw4", "down"),
        presence("near", "up", "gw"),
        presence("far", "up", "gw3"),
        presence("gone", "down", "gw2", { lastHeard: fiveMinutesAgo }),
        presence("ended", "down", "gw", { lastHeard: fiveMinutesAgo, stopped: true }),
        presence("fresh", "never"),
        presence("lost", "unknown", "gw4"),
      ],
    }),
  );
  assert.deepEqual(reachOf(mesh), {
    gw: "gateway",
    gw2: "online",
    gw3: "online",
    gw4: "down",
    near: "online",
    far: "relayed via gw3",
    gone: "down",
    ended: "down",
    fresh: "waiting",
    lost: "unknown",
  });
  assert.deepEqual(
    mesh.edges
      .filter(({ source, target }) => source === "gw" && target.startsWith("gw"))
      .map(({ target, state }) => [target, state]),
    [
      ["gw2", "online"],
      ["gw3", "online"],
      ["gw4", "down"],
    ],
  );
  const why = (id: string): string => {
    const found = mesh.byId.get(id);
    assert.ok(found);
    return explainReach(found, now);
  };
  assert.equal(why("gone"), "It was last heard 5 min ago by gw2.");
  assert.equal(why("ended"), "It stopped 5 min ago.");
  assert.equal(why("lost"), "It is behind gw4, which does not answer.");
  assert.match(why("gw2"), /nothing was sent/);
  assert.match(why("far"), /through gw3/);
  assert.match(why("fresh"), /No gateway has heard it/);
});

test("describeMesh leads through nobody to a node that a network ACL keeps off", () => {
  const up = (nodeId: string, gatewayId: string): Presence => ({
    nodeId,
    state: "up",
    gatewayId,
    lastHeard: undefined,
    stopped: false,
  });
  const part: Partial<Snapshot> = {
    nodes: ["gw", "gw2", "laptop", "far"].map((id) => node(id)),
    edges: [edge("gw", "gw2"), edge("gw", "laptop"), edge("gw2", "far")],
    presence: [up("gw2", "gw2"), up("laptop", "gw"), up("far", "gw2")],
  };
  const barred = [
    { nodeId: "gw2", acl: "lockdown" },
    { nodeId: "laptop", acl: "" },
    { nodeId: "far", acl: "lockdown" },
  ];
  const mesh = describeMesh(snapshot({ ...part, barred }));
  assert.deepEqual(reachOf(mesh), { gw: "gateway", gw2: "unknown", laptop: "unknown", far: "unknown" });
  const why = (id: string): string => explainReach(mesh.byId.get(id) ?? assert.fail(id), 0);
  assert.equal(why("gw2"), "The network ACL lockdown lets nothing pass between this gateway and it.");
  assert.equal(why("laptop"), "No network ACL lets packets pass between this gateway and it.");
  assert.deepEqual(reachOf(describeMesh(snapshot(part))), {
    gw: "gateway",
    gw2: "unknown",
    laptop: "unknown",
    far: "relayed via gw2",
  });
});

test("describeMesh prefers a way through a node that answers", () => {
  const mesh = describeMesh(
    snapshot({
      nodes: ["gw", "a-dead", "b-alive", "far"].map((id) => node(id)),
      edges: [edge("a-dead", "far"), edge("b-alive", "far"), edge("gw", "a-dead"), edge("gw", "b-alive")],
      links: [link("a-dead", { online: false }), link("b-alive")],
    }),
  );
  assert.equal(mesh.byId.get("far")?.via, "b-alive");
});

test("describeMesh knows no way through a node that does not answer, nor without links", () => {
  const nodes = ["gw", "dead", "far"].map((id) => node(id));
  const edges = [edge("dead", "far"), edge("gw", "dead")];
  for (const links of [[link("dead", { online: false })], []]) {
    assert.equal(describeMesh(snapshot({ nodes, edges, links })).byId.get("far")?.reach, "unknown");
  }
});

test("describeMesh unites both directions and drops edges without ends", () => {
  const mesh = describeMesh(
    snapshot({
      nodes: [node("gw"), node("b")],
      edges: [edge("b", "gw"), edge("gw", "b"), edge("gw", "gw"), edge("gw", "nobody")],
      links: [link("b"), link("nobody")],
    }),
  );
  assert.deepEqual(
    mesh.edges.map(({ source, target, state }) => ({ source, target, state })),
    [{ source: "b", target: "gw", state: "online" }],
  );
  assert.equal(mesh.byId.get("gw")?.degree, 1);
});

test("describeMesh shows a link that has no edge", () => {
  const mesh = describeMesh(
    snapshot({ nodes: [node("gw"), node("b")], links: [link("b", { online: false })] }),
  );
  assert.deepEqual(
    mesh.edges.map(({ state }) => state),
    ["waiting"],
  );
});

test("describeMesh knows nothing of edges between others", () => {
  const mesh = describeMesh(
    snapshot({
      nodes: [node("gw"), node("a"), node("b")],
      edges: [edge("a", "b")],
      links: [link("a"), link("b")],
    }),
  );
  assert.equal(mesh.edges.find(({ key }) => key === '["a","b"]')?.state, "unknown");
});

test("describeMesh keeps names apart that look alike when joined", () => {
  const mesh = describeMesh(
    snapshot({
      nodes: ["gw", "a", "b,c", "a,b", "c"].map((id) => node(id)),
      edges: [edge("a", "b,c"), edge("a,b", "c")],
    }),
  );
  assert.equal(new Set(mesh.edges.map(({ key }) => key)).size, 2);
});

test("the gateway answers for a node without the Node API", () => {
  const resolver = node("resolver", { features: [{ name: "MESH_DNS", port: 53 }] });
  const mesh = describeMesh(snapshot({ nodes: [node("phone", { features: [] }), resolver, node("server")] }));
  assert.equal(mesh.byId.get("phone")?.stock, true);
  assert.equal(mesh.byId.get("resolver")?.stock, true);
  assert.equal(mesh.byId.get("server")?.stock, false);
});

test("peerName finds the node by its key, whoever is reached through it", () => {
  const mesh = describeMesh(
    snapshot({
      nodes: [
        node("gw1", {
          publicKey: "CAUSICwkMY/u7UUS+dKIB1vhezkLa1YqffkdNYjvtOefj24y",
          addresses: ["172.16.0.1"],
        }),
        node("gw2", {
          publicKey: "CAUSIKfLfL4ezTS/BUH0/gEhHMEVk5dczpQvgygNuC06uveD",
          addresses: ["172.16.0.2"],
        }),
      ],
    }),
  );
  const gw2 = "izKtjUmRwxAy29Kv87grjJEY6DW6/L3sTuLNHmgEsyg=";
  assert.equal(peerName(mesh, { publicKey: gw2, allowedIps: ["172.16.0.1/32", "172.16.0.2/32"] }), "gw2");
  assert.equal(
    peerName(mesh, { publicKey: "vrvSktwSoWyXI2vJpY6lICYvzY8Q0a60LH+9NFTs23o=", allowedIps: [] }),
    "gw1",
  );
});

test("peerName of an unknown key is the one owner of the allowed addresses", () => {
  const named = (...allowedIps: string[]): string | undefined =>
    peerName(mesh, { publicKey: "key", allowedIps });
  const mesh = describeMesh(
    snapshot({
      nodes: [node("a", { addresses: ["172.16.0.2", "fd9f::2"] }), node("b", { addresses: ["172.16.0.3"] })],
    }),
  );
  assert.equal(named("10.0.0.0/8", "172.16.0.2/32"), "a");
  assert.equal(named("fd9f::2/112", "172.16.0.2/32"), "a");
  assert.equal(named("172.16.0.9/32"), undefined);
  assert.equal(named("172.16.0.3/32", "172.16.0.2/32"), undefined);
});

test("names sort as people expect", () => {
  assert.deepEqual(["web-10", "web-2", "Alpha", "beta"].sort(compareText), [
    "Alpha",
    "beta",
    "web-2",
    "web-10",
  ]);
  assert.notEqual(compareText("a", "A"), 0);
});

test("isPlainEndpoint knows addresses of UDP", () => {
  for (const text of ["198.51.100.1:51820", "[2001:db8::1]:51820", "[fe80::1%eth0]:1"]) {
    assert.ok(isPlainEndpoint(text), text);
  }
  for (const text of ["", "data-channel", "ice:web-1", "gate.example.org:51820", "1.2.3.4"]) {
    assert.ok(!isPlainEndpoint(text), text);
  }
});
