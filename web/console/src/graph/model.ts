// SPDX-License-Identifier: Apache-2.0

import type { Barred, Link, MeshEdge, MeshNode, PeerStats, Presence, Snapshot, Transport } from "../mesh.ts";
import { pointOfNode, pointOfWireGuard } from "./keys.ts";

/**
 * How a node is reached, as the answering gateway sees it. Who is up is what the mesh says, where it
 * does: a link of this gateway that rests, as between gateways, says nothing.
 *
 * - gateway: it is the gateway that answers
 * - online: WireGuard over UDP
 * - relayed: reached, but through another node or inside a data channel
 * - down: it has stopped, or is not heard any more
 * - waiting: there was no handshake yet, as with a peer that was just created
 * - unknown: nothing connects it to this gateway, not even a network ACL, or who would know it does not answer
 */
export type Reach = "gateway" | "online" | "relayed" | "down" | "waiting" | "unknown";

/** State of an edge. "unknown": neither end is the gateway that answers. */
export type EdgeState = "online" | "relayed" | "down" | "waiting" | "unknown";

export interface NodeModel {
  readonly id: string;
  readonly node: MeshNode;
  readonly reach: Reach;
  /** The node that passes traffic on, for a relayed node; otherwise empty. */
  readonly via: string;
  readonly link: Link | undefined;
  /** Missing from a gateway that does not tell. */
  readonly presence?: Presence;
  /** Set for a node that the network ACLs keep off from this gateway. */
  readonly barred?: Barred;
  /** True for a peer that runs no Meshgate: the gateway answers for it. */
  readonly stock: boolean;
  readonly degree: number;
}

export interface EdgeModel {
  /** Same for both directions of an edge. */
  readonly key: string;
  readonly source: string;
  readonly target: string;
  readonly weight: number;
  readonly transport: Transport;
  readonly state: EdgeState;
}

/** A snapshot with everything the pages show worked out. */
export interface MeshModel {
  readonly version: string;
  readonly gatewayId: string;
  readonly domain: string;
  /** Sorted by id. */
  readonly nodes: readonly NodeModel[];
  readonly edges: readonly EdgeModel[];
  readonly byId: ReadonlyMap<string, NodeModel>;
  /** Node ids by mesh address, to name the peers of an interface. */
  readonly idByAddress: ReadonlyMap<string, string>;
}

/** Works out how everything is reached. Pure; O(nodes + edges). */
export function describeMesh(snapshot: Snapshot): MeshModel {
  const ids = new Set(snapshot.nodes.map((node) => node.id));
  const links = new Map(snapshot.links.map((link) => [link.nodeId, link]));
  const presences = new Map(snapshot.presence?.map((one) => [one.nodeId, one]));
  const bars = new Map(snapshot.barred?.map((one) => [one.nodeId, one]));
  const edges = uniteEdges(snapshot, ids, links, presences);
  const neighbours = neighbourhood(edges);
  const ways = findWays(snapshot.gatewayId, neighbours, links, presences);

  const nodes = snapshot.nodes
    .map((node): NodeModel => {
      const link = links.get(node.id);
      const presence = presences.get(node.id);
      const barred = bars.get(node.id);
      const carried = neighbours.get(node.id)?.get(snapshot.gatewayId)?.transport;
      return {
        id: node.id,
        node,
        link,
        ...(presence && { presence }),
        ...(barred && { barred }),
        ...reachOf(node.id, snapshot.gatewayId, { link, presence, barred, transport: carried }, ways),
        // By the same feature gateways tell them apart.
        stock: !node.features.some(({ name }) => name === "NODES"),
        degree: neighbours.get(node.id)?.size ?? 0,
      };
    })
    .sort((a, b) => compareText(a.id, b.id));
  return {
    version: snapshot.version,
    gatewayId: snapshot.gatewayId,
    domain: snapshot.domain,
    nodes,
    edges,
    byId: new Map(nodes.map((node) => [node.id, node])),
    idByAddress: new Map(nodes.flatMap(({ node }) => node.addresses.map((address) => [address, node.id]))),
  };
}

/**
 * The node behind a peer of a WireGuard interface: the one with its key. Allowed addresses say who is
 * reached through the peer, which may be many others; they name it when its key is unknown and they are those of one node.
 */
export function peerName(
  mesh: MeshModel,
  peer: Pick<PeerStats, "publicKey" | "allowedIps">,
): string | undefined {
  const point = pointOfWireGuard(peer.publicKey);
  const holder = point === undefined ? undefined : idsByPoint(mesh).get(point);
  if (holder !== undefined) {
    return holder;
  }
  const owners = new Set(peer.allowedIps.map((prefix) => mesh.idByAddress.get(prefix.replace(/\/\d+$/, ""))));
  owners.delete(undefined);
  return owners.size === 1 ? [...owners][0] : undefined;
}

const points = new WeakMap<MeshModel, ReadonlyMap<bigint, string>>();

/** Node ids by their keys; worked out once for a mesh, when it is first asked for. */
function idsByPoint(mesh: MeshModel): ReadonlyMap<bigint, string> {
  const known = points.get(mesh);
  if (known !== undefined) {
    return known;
  }
  const ids = new Map<bigint, string>();
  for (const { id, node } of mesh.nodes) {
    const point = pointOfNode(node.publicKey);
    if (point !== undefined) {
      ids.set(point, id);
    }
  }
  points.set(mesh, ids);
  return ids;
}

/** Order of names: as a person would sort them, so that web-2 comes before web-10. */
export function compareText(a: string, b: string): number {
  return collator.compare(a, b) || (a < b ? -1 : a > b ? 1 : 0);
}

const collator = new Intl.Collator("en", { numeric: true });

/** True for "ip:port", the endpoint of plain WireGuard over UDP. */
export function isPlainEndpoint(endpoint: string): boolean {
  return /^(\[[0-9a-f:.]+(%[^\]]+)?\]|\d{1,3}(\.\d{1,3}){3}):\d{1,5}$/i.test(endpoint);
}

/** What is known of a node besides its record. */
interface Known {
  readonly link: Link | undefined;
  readonly presence: Presence | undefined;
  readonly barred: Barred | undefined;
  /** That of its edge to the gateway, if there is one. */
  readonly transport: Transport | undefined;
}

/** The state of the gateway's own link to a node. One that rests is online while the node is up. */
function linkState(
  link: Link,
  transport: Transport | undefined,
  presence: Presence | undefined,
): "online" | "relayed" | "down" | "waiting" {
  switch (presence?.state) {
    case "down":
      return "down";
    case "never":
      return "waiting";
    default:
  }
  if (!link.online && presence?.state === "up") {
    return link.path?.kind === "carried" ? "relayed" : "online";
  }
  if (!link.online) {
    return link.lastHandshake === undefined ? "waiting" : "down";
  }
  if (link.path?.kind === "relayed" || link.path?.kind === "carried") {
    return "relayed";
  }
  const carried = transport === "ice" || transport === "libp2p";
  const plain = link.endpoint === "" ? !carried : isPlainEndpoint(link.endpoint);
  return plain ? "online" : "relayed";
}

function uniteEdges(
  snapshot: Snapshot,
  ids: ReadonlySet<string>,
  links: ReadonlyMap<string, Link>,
  presences: ReadonlyMap<string, Presence>,
): EdgeModel[] {
  const edges = new Map<string, EdgeModel>();
  const add = (edge: MeshEdge): void => {
    const { source, target, weight, transport } = edge;
    if (source === target || !ids.has(source) || !ids.has(target)) {
      return;
    }
    const [a, b] = source < target ? [source, target] : [target, source];
    const key = JSON.stringify([a, b]);
    const far = a === snapshot.gatewayId ? b : b === snapshot.gatewayId ? a : undefined;
    const link = far === undefined ? undefined : links.get(far);
    const state = link === undefined ? "unknown" : linkState(link, transport, presences.get(link.nodeId));
    if (!edges.has(key)) {
      edges.set(key, { key, source: a, target: b, weight, transport, state });
    }
  };
  snapshot.edges.forEach(add);
  // A link without an edge in the state exists all the same.
  for (const link of snapshot.links) {
    add({ source: snapshot.gatewayId, target: link.nodeId, weight: 1, transport: "wireguard" });
  }
  return [...edges.values()];
}

type Neighbours = Map<string, Map<string, EdgeModel>>;

function neighbourhood(edges: readonly EdgeModel[]): Neighbours {
  const all: Neighbours = new Map();
  const put = (from: string, to: string, edge: EdgeModel): void => {
    const mine = all.get(from) ?? new Map<string, EdgeModel>();
    mine.set(to, edge);
    all.set(from, mine);
  };
  for (const edge of edges) {
    put(edge.source, edge.target, edge);
    put(edge.target, edge.source, edge);
  }
  return all;
}

/**
 * For each node that is reached through others: the neighbour of the gateway on the shortest way.
 * A neighbour that does not answer is no way to anybody, nor is one without a link.
 */
function findWays(
  gateway: string,
  neighbours: Neighbours,
  links: ReadonlyMap<string, Link>,
  presences: ReadonlyMap<string, Presence>,
): Map<string, string> {
  const ways = new Map<string, string>();
  const answers = (id: string): boolean =>
    links.has(id) &&
    (presences.get(id)?.state === "up" ||
      (presences.get(id) === undefined && links.get(id)?.online === true));
  const first = [...(neighbours.get(gateway)?.keys() ?? [])].sort(compareText);
  let border: [string, string][] = first.filter(answers).map((id) => [id, id]);
  while (border.length > 0) {
    const next: [string, string][] = [];
    for (const [at, via] of border) {
      for (const id of neighbours.get(at)?.keys() ?? []) {
        if (id !== gateway && !links.has(id) && !ways.has(id)) {
          ways.set(id, via);
          next.push([id, via]);
        }
      }
    }
    border = next;
  }
  return ways;
}

function reachOf(
  id: string,
  gateway: string,
  { link, presence, barred, transport }: Known,
  ways: ReadonlyMap<string, string>,
): { reach: Reach; via: string } {
  if (id === gateway) {
    return { reach: "gateway", via: "" };
  }
  if (presence?.state === "unknown") {
    return { reach: "unknown", via: "" };
  }
  if (link !== undefined) {
    return { reach: linkState(link, transport, presence), via: "" };
  }
  switch (presence?.state) {
    case "down":
      return { reach: "down", via: "" };
    case "never":
      return { reach: "waiting", via: "" };
    default:
  }
  if (barred !== undefined) {
    return { reach: "unknown", via: "" };
  }
  const by = presence?.gatewayId ?? "";
  const via = ways.get(id) ?? (by === gateway || by === id ? "" : by);
  if (via === "") {
    // A gateway that no link leads to is up; what was heard and has no way any more is not reached.
    return { reach: presence === undefined || by !== "" ? "unknown" : "online", via: "" };
  }
  return { reach: "relayed", via };
}
