// SPDX-License-Identifier: Apache-2.0

// Wire formats become the console's own values here, over an in-memory gateway.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Code, ConnectError, createRouterTransport } from "@connectrpc/connect";
import {
  ClusterStatus,
  createMeshClient,
  Feature,
  type MeshClient,
  type MeshRequestInit,
  Node,
  type StateDetail,
  Turn,
  Watch,
} from "@meshgate/client";
import { createBackend } from "./api.ts";
import type { Way } from "./backend.ts";

const seconds = (at: number) => ({ seconds: BigInt(at), nanos: 500_000_000 });

const web = {
  id: "Web 1",
  publicKey: "key",
  zoneAwarenessId: "zone",
  privateIpv4: "172.16.0.2/32",
  privateIpv6: "fd9f::2/112",
  primaryEndpoint: "gate.example.org",
  wireguardEndpoints: ["203.0.113.7:51820"],
  features: [
    { feature: Feature.TURN_SERVER, port: 3478 },
    { feature: Feature.FEATURE_NONE, port: 1 },
    { feature: 99, port: 5 },
  ],
  services: [{ protocol: "tcp", port: 80, kind: "http" }],
  joinedAt: seconds(1_700_000_000),
};
const bare = { id: "bare", privateIpv4: "invalid Prefix" };
const edge = (target: string, attributes: Record<string, string>) => ({
  source: "a",
  target,
  weight: 1,
  attributes,
});

const allocation = {
  id: "gw1/1d2c",
  gatewayId: "gw1",
  user: "shop.alice",
  clientAddress: "11.0.0.2:38962",
  transport: "TLS",
  relayedAddresses: ["11.0.0.1:49378", "[2001:db8::1]:49378"],
  relayTransport: "UDP",
  since: seconds(1_700_000_002),
  permissions: 2,
  channels: 1,
  sentBytes: 7n,
  receivedBytes: 2n ** 40n,
};

function gateway(relaysAreDenied = false): MeshClient {
  const transport = createRouterTransport(({ service }) => {
    service(Watch, {
      async *watchMesh() {
        yield {
          version: 2n ** 60n,
          gatewayId: "gateway",
          meshDomain: "mesh.internal",
          nodes: [web, bare],
          edges: [
            edge("b", { EDGE_ATTRIBUTE_ICE: "true" }),
            edge("c", { EDGE_ATTRIBUTE_NATIVE: "true" }),
            edge("d", { EDGE_ATTRIBUTE_LIBP2P: "true" }),
            edge("e", { EDGE_ATTRIBUTE_ICE: "false" }),
          ],
          links: [
            {
              nodeId: "Web 1",
              online: true,
              endpoint: "198.51.100.1:1",
              lastHandshake: seconds(1_700_000_001),
              receiveBytes: 5n,
              transmitBytes: 6n,
              path: {
                kind: 3,
                via: "gateway",
                transport: "TLS",
                roundTrip: { seconds: 1n, nanos: 500_000 },
                since: seconds(1_700_000_001),
                reason: "UDP is blocked",
              },
            },
          ],
          presence: [
            { nodeId: "Web 1", state: 2, gatewayId: "gw2", lastHeard: seconds(1_700_000_001), stopped: true },
          ],
        };
      },
    });
    service(Turn, {
      async *listAllocations({ gatewayId, user }) {
        assert.deepEqual([gatewayId, user], ["", ""]);
        yield { allocations: [allocation] };
        yield { silent: [{ gatewayId: "gw2", reason: "no answer within 2s" }] };
        if (relaysAreDenied) {
          throw new ConnectError("the role of bob does not allow it", Code.PermissionDenied);
        }
      },
    });
    service(Node, {
      getStatus({ id }) {
        if (id === "nobody") {
          throw new ConnectError("no node nobody", Code.NotFound);
        }
        return {
          id,
          version: "0.1.0",
          clusterStatus: ClusterStatus.CLUSTER_LEADER,
          currentLeader: id,
          startedAt: seconds(1_700_000_000),
          features: [{ feature: Feature.NODES, port: 8443 }],
          interfaceMetrics: {
            deviceName: "meshgate0",
            type: "netstack",
            listenPort: 51820,
            addressV4: "172.16.0.2/32",
            addressV6: "",
            totalReceiveBytes: 7n,
            totalTransmitBytes: 8n,
            peers: [
              {
                publicKey: "p",
                lastHandshakeTime: "2026-11-22T12:00:00Z",
                allowedIps: ["172.16.0.3/32"],
                receiveBytes: 1n,
              },
              { publicKey: "q", lastHandshakeTime: "0001-01-01T00:00:00Z" },
              { publicKey: "r", lastHandshakeTime: "" },
            ],
          },
        };
      },
    });
  });
  return createMeshClient({ baseUrl: "https://gate.example.org", transport });
}

const never = new AbortController().signal;

test("the parts of a list of allocations become one of relays", async () => {
  assert.deepEqual(await createBackend("t", gateway()).relays(never), {
    relays: [
      {
        id: "gw1/1d2c",
        gatewayId: "gw1",
        user: "shop.alice",
        transport: "TLS",
        client: "11.0.0.2:38962",
        addresses: ["11.0.0.1:49378", "[2001:db8::1]:49378"],
        peers: 2,
        sentBytes: 7,
        receivedBytes: 2 ** 40,
        since: new Date(1_700_000_002_500),
      },
    ],
    silent: [{ gatewayId: "gw2", reason: "no answer within 2s" }],
  });
  await assert.rejects(createBackend("t", gateway(true)).relays(never), { code: "permission_denied" });
});

test("a watch message becomes a snapshot", async () => {
  const backend = createBackend("t", gateway());
  for await (const snapshot of backend.watch(never)) {
    const [web, bare] = snapshot.nodes;
    assert.deepEqual(web, {
      id: "Web 1",
      publicKey: "key",
      zone: "zone",
      addresses: ["172.16.0.2", "fd9f::2"],
      primaryEndpoint: "gate.example.org",
      endpoints: ["203.0.113.7:51820"],
      features: [
        { name: "TURN_SERVER", port: 3478 },
        { name: "feature 99", port: 5 },
      ],
      services: [{ protocol: "tcp", port: 80, kind: "http" }],
      joinedAt: new Date(1_700_000_000_500),
    });
    assert.deepEqual(bare?.addresses, []);
    assert.equal(bare?.joinedAt, undefined);
    assert.deepEqual(
      snapshot.edges.map(({ transport }) => transport),
      ["ice", "native", "libp2p", "wireguard"],
    );
    assert.deepEqual(snapshot.links, [
      {
        nodeId: "Web 1",
        online: true,
        endpoint: "198.51.100.1:1",
        lastHandshake: new Date(1_700_000_001_500),
        receiveBytes: 5,
        transmitBytes: 6,
        path: {
          kind: "relayed",
          via: "gateway",
          transport: "TLS",
          address: "",
          rttMs: 1000.5,
          since: new Date(1_700_000_001_500),
          reason: "UDP is blocked",
        },
      },
    ]);
    assert.deepEqual(snapshot.presence, [
      {
        nodeId: "Web 1",
        state: "down",
        gatewayId: "gw2",
        lastHeard: new Date(1_700_000_001_500),
        stopped: true,
      },
    ]);
    assert.equal(snapshot.version, "1152921504606846976");
    assert.equal(snapshot.gatewayId, "gateway");
    assert.equal(snapshot.domain, "mesh.internal");
    break;
  }
  backend.close();
});

test("a status becomes the console's own", async () => {
  const status = await createBackend("t", gateway()).status("web-1", never);
  assert.equal(status.role, "leader");
  assert.equal(status.startedAt?.getTime(), 1_700_000_000_500);
  assert.deepEqual(status.features, [{ name: "NODES", port: 8443 }]);
  assert.deepEqual(status.interface?.addresses, ["172.16.0.2"]);
  assert.equal(status.interface?.receiveBytes, 7);
  assert.deepEqual(
    status.interface?.peers.map(({ lastHandshake }) => lastHandshake),
    [new Date("2026-11-22T12:00:00Z"), undefined, undefined],
  );
});

test("errors keep their code", async () => {
  await assert.rejects(createBackend("t", gateway()).status("nobody", never), { code: "not_found" });
});

/** A client that notes what it is asked to fetch. */
function noting(asked: [string, MeshRequestInit][]): MeshClient {
  const client = gateway();
  client.fetch = async (input, init = {}) => {
    asked.push([String(input), init]);
    return new Response("ok");
  };
  return client;
}

test("a request goes to the node by name, or by address when the name does not fit in a URL", async () => {
  const asked: [string, MeshRequestInit][] = [];
  const backend = createBackend("t", noting(asked));
  for await (const _ of backend.watch(never)) {
    break;
  }
  const get = { method: "GET", path: "/a?b", headers: [["x-a", "1"]], body: undefined } as const;
  await backend.fetch({ node: "web-1", host: "", port: 80 }, get, never);
  await backend.fetch({ node: "Web 1", host: "", port: 80 }, get, never);
  await backend.fetch(
    { node: "web-1", host: "fd00::5", port: 8080 },
    { ...get, method: "POST", body: "x" },
    never,
  );
  assert.deepEqual(
    asked.map(([url]) => url),
    ["http://web-1:80/a?b", "http://172.16.0.2:80/a?b", "http://[fd00::5]:8080/a?b"],
  );
  assert.deepEqual(
    asked.map(([, { node, method, body, redirect }]) => [node, method, body, redirect]),
    [
      ["web-1", "GET", undefined, "manual"],
      ["Web 1", "GET", undefined, "manual"],
      ["web-1", "POST", "x", "manual"],
    ],
  );
});

test("states of the client become ways", () => {
  const client = gateway();
  const backend = createBackend("t", client);
  const ways: Way[] = [];
  const stop = backend.onWay((way) => ways.push(way));
  const tell = (detail: StateDetail): boolean =>
    (client as unknown as EventTarget).dispatchEvent(new CustomEvent("state", { detail }));
  const end = { type: "host", protocol: "udp", address: "fd00::1", port: 5 } as const;
  const hidden = { ...end, address: "", port: 0 };
  tell({
    scope: "node",
    node: "a",
    state: "connecting",
    step: "checking",
    candidates: { local: [hidden], remote: [end] },
  });
  tell({
    scope: "node",
    node: "a",
    state: "connected",
    path: { kind: "direct", rttMs: 3, local: hidden, remote: end },
  });
  tell({ scope: "gateway", node: "", state: "waiting", retryInMs: 500 });
  stop();
  tell({ scope: "node", node: "a", state: "closed" });
  const shown = { type: "host", protocol: "udp", address: "[fd00::1]:5" };
  assert.deepEqual(ways, [
    {
      node: "a",
      state: "connecting",
      step: "checking",
      candidates: { local: [{ ...shown, address: "" }], remote: [shown] },
    },
    {
      node: "a",
      state: "connected",
      path: { kind: "direct", rttMs: 3, local: { ...shown, address: "" }, remote: shown },
    },
    { node: "", state: "waiting", retryInMs: 500 },
  ]);
});
