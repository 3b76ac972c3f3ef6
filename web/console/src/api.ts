// SPDX-License-Identifier: Apache-2.0

// The only importer of @meshgate/client: wire formats end here.

import * as client from "@meshgate/client";
import type { Backend, Connection, Path, PathEnd, Way } from "./backend.ts";
import { hostPort } from "./format.ts";
import type {
  Feature,
  InterfaceStats,
  LinkPath,
  MeshEdge,
  MeshNode,
  NodeStatus,
  Relay,
  Relays,
  Snapshot,
  Transport,
} from "./mesh.ts";

/** Makes a backend for the gateway that served this page. */
export function createBackend(
  token: string,
  mesh: client.MeshClient = client.createMeshClient({ baseUrl: location.origin, token }),
): Backend {
  /** Mesh addresses by node id, for ids that cannot stand in a URL. */
  const addresses = new Map<string, string>();
  return {
    async *watch(signal) {
      for await (const response of mesh.watch({ signal })) {
        const snapshot = toSnapshot(response);
        for (const node of snapshot.nodes) {
          addresses.set(node.id, node.addresses[0] ?? "");
        }
        yield snapshot;
      }
    },
    async status(node, signal) {
      return toStatus(await mesh.status(node, { signal }));
    },
    relays(signal) {
      return listRelays(mesh, signal);
    },
    async connect({ node, host, port }, signal) {
      return toConnection(await mesh.connect({ node, port, signal, ...(host === "" ? {} : { host }) }));
    },
    fetch({ node, host, port }, { method, path, headers, body }, signal) {
      const name = host === "" ? urlHost(node, addresses.get(node) ?? node) : host;
      return mesh.fetch(`http://${hostPort(name, port)}${path}`, {
        node,
        method,
        headers: headers.map(([key, value]): [string, string] => [key, value]),
        // What came is shown, redirects included.
        redirect: "manual",
        signal,
        ...(body === undefined ? {} : { body }),
      });
    },
    onWay(listener) {
      const listen = (event: client.MeshClientEvents["state"]): void => listener(toWay(event.detail));
      mesh.addEventListener("state", listen);
      return () => mesh.removeEventListener("state", listen);
    },
    close() {
      mesh.close().catch(() => undefined);
    },
  };
}

/** A node id as the host of a URL, or its address when the id would be read as something else. */
function urlHost(id: string, address: string): string {
  try {
    return new URL(`http://${id}/`).hostname === id ? id : address;
  } catch {
    return address;
  }
}

function toConnection(connection: client.MeshConnection): Connection {
  return {
    readable: connection.readable,
    writable: connection.writable,
    closed: connection.closed,
    close: () => connection.close(),
    path: async () => toPath(await connection.path()),
  };
}

function toPath(path: client.Path): Path {
  return { kind: path.kind, rttMs: path.rttMs, local: toEnd(path.local), remote: toEnd(path.remote) };
}

function toEnd(end: client.PathEndpoint): PathEnd {
  return {
    type: end.type,
    protocol: end.protocol,
    address: end.address === "" ? "" : hostPort(end.address, end.port),
  };
}

function toWay(detail: client.StateDetail): Way {
  return {
    node: detail.scope === "gateway" ? "" : detail.node,
    state: detail.state,
    ...(detail.step && { step: detail.step }),
    ...(detail.candidates && {
      candidates: { local: detail.candidates.local.map(toEnd), remote: detail.candidates.remote.map(toEnd) },
    }),
    ...(detail.path && { path: toPath(detail.path) }),
    ...(detail.retryInMs !== undefined && { retryInMs: detail.retryInMs }),
    ...(detail.error && { error: detail.error }),
  };
}

function toSnapshot(response: client.WatchMeshResponse): Snapshot {
  return {
    version: String(response.version),
    gatewayId: response.gatewayId,
    domain: response.meshDomain,
    leaderless: response.leaderless,
    nodes: response.nodes.map(toNode),
    edges: response.edges.map(toEdge),
    links: response.links.map((link) => ({
      nodeId: link.nodeId,
      online: link.online,
      endpoint: link.endpoint,
      lastHandshake: toDate(link.lastHandshake),
      receiveBytes: Number(link.receiveBytes),
      transmitBytes: Number(link.transmitBytes),
      ...(link.path && { path: toLinkPath(link.path) }),
    })),
    presence: response.presence.map((one) => ({
      nodeId: one.nodeId,
      state: presenceStates[one.state] ?? "unknown",
      gatewayId: one.gatewayId,
      lastHeard: toDate(one.lastHeard),
      stopped: one.stopped,
    })),
    barred: response.barred.map(({ nodeId, acl }) => ({ nodeId, acl })),
  };
}

/** The states of nodes, by their numbers. */
const presenceStates = ["unknown", "up", "down", "never"] as const;

/** The kinds of paths, by their numbers. */
const pathKinds = ["unknown", "none", "direct", "relayed", "carried"] as const;

function toLinkPath(path: NonNullable<client.WatchMeshResponse["links"][number]["path"]>): LinkPath {
  const rtt = path.roundTrip;
  return {
    kind: pathKinds[path.kind] ?? "unknown",
    via: path.via,
    transport: path.transport,
    address: path.address,
    rttMs: rtt && Number(rtt.seconds) * 1000 + rtt.nanos / 1e6,
    since: toDate(path.since),
    reason: path.reason,
  };
}

function toNode(node: client.MeshNode): MeshNode {
  return {
    id: node.id,
    publicKey: node.publicKey,
    zone: node.zoneAwarenessId,
    addresses: [node.privateIpv4, node.privateIpv6].map(address).filter((text) => text !== ""),
    primaryEndpoint: node.primaryEndpoint,
    endpoints: node.wireguardEndpoints,
    features: node.features.flatMap(toFeature),
    services: node.services.map(({ protocol, port, kind }) => ({ protocol, port, kind })),
    joinedAt: toDate(node.joinedAt),
  };
}

/** The address of a prefix; older nodes write "invalid Prefix" for none. */
function address(prefix: string): string {
  const [text = ""] = prefix.split("/");
  return /^[0-9a-f.:]+$/i.test(text) ? text : "";
}

function toFeature({ feature, port }: client.FeaturePort): Feature[] {
  const name = client.Feature[feature] ?? `feature ${feature}`;
  return feature === client.Feature.FEATURE_NONE ? [] : [{ name, port }];
}

function toEdge({ source, target, weight, attributes }: client.MeshEdge): MeshEdge {
  const has = (kind: string): boolean => attributes[`EDGE_ATTRIBUTE_${kind}`] === "true";
  // The order in which nodes themselves choose among several.
  const transport: Transport = has("ICE")
    ? "ice"
    : has("LIBP2P")
      ? "libp2p"
      : has("NATIVE")
        ? "native"
        : "wireguard";
  return { source, target, weight, transport };
}

const roles: Partial<Record<client.ClusterStatus, string>> = {
  [client.ClusterStatus.CLUSTER_LEADER]: "leader",
  [client.ClusterStatus.CLUSTER_VOTER]: "voter",
  [client.ClusterStatus.CLUSTER_OBSERVER]: "observer",
  [client.ClusterStatus.CLUSTER_NODE]: "node",
};

function toStatus(status: client.Status): NodeStatus {
  return {
    id: status.id,
    version: status.version,
    commit: status.commit,
    startedAt: toDate(status.startedAt),
    role: roles[status.clusterStatus] ?? "",
    leader: status.currentLeader,
    features: status.features.flatMap(toFeature),
    interface: status.interfaceMetrics && toInterface(status.interfaceMetrics),
  };
}

function toInterface(metrics: client.InterfaceMetrics): InterfaceStats {
  return {
    name: metrics.deviceName,
    kind: metrics.type,
    listenPort: metrics.listenPort,
    addresses: [metrics.addressV4, metrics.addressV6].map(address).filter((text) => text !== ""),
    receiveBytes: Number(metrics.totalReceiveBytes),
    transmitBytes: Number(metrics.totalTransmitBytes),
    peers: metrics.peers.map((peer) => ({
      publicKey: peer.publicKey,
      endpoint: peer.endpoint,
      lastHandshake: toTime(peer.lastHandshakeTime),
      allowedIps: peer.allowedIps,
      receiveBytes: Number(peer.receiveBytes),
      transmitBytes: Number(peer.transmitBytes),
    })),
  };
}

/** Reads a list that comes in parts. */
async function listRelays(mesh: client.MeshClient, signal: AbortSignal): Promise<Relays> {
  const relays: Relay[] = [];
  const silent: { gatewayId: string; reason: string }[] = [];
  try {
    for await (const part of mesh.service(client.Turn).listAllocations({}, { signal })) {
      relays.push(...part.allocations.map(toRelay));
      silent.push(...part.silent.map(({ gatewayId, reason }) => ({ gatewayId, reason })));
    }
  } catch (error) {
    throw client.MeshgateError.from(error);
  }
  return { relays, silent };
}

function toRelay(allocation: client.Allocation): Relay {
  return {
    id: allocation.id,
    gatewayId: allocation.gatewayId,
    user: allocation.user,
    transport: allocation.transport,
    client: allocation.clientAddress,
    addresses: allocation.relayedAddresses,
    peers: allocation.permissions,
    sentBytes: Number(allocation.sentBytes),
    receivedBytes: Number(allocation.receivedBytes),
    since: toDate(allocation.since),
  };
}

function toDate(timestamp: { seconds: bigint; nanos: number } | undefined): Date | undefined {
  if (timestamp === undefined || timestamp.seconds <= 0n) {
    return undefined;
  }
  return new Date(Number(timestamp.seconds) * 1000 + timestamp.nanos / 1e6);
}

/** A time in text; WireGuard's "never" is year 1 or the epoch. */
function toTime(text: string): Date | undefined {
  const ms = Date.parse(text);
  return Number.isNaN(ms) || ms <= 0 ? undefined : new Date(ms);
}
