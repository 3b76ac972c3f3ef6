// SPDX-License-Identifier: Apache-2.0

import type { Path, PathEnd, Way, WayStep } from "./backend.ts";
import { ago, duration, label, milliseconds } from "./format.ts";
import type { EdgeState, NodeModel, Reach } from "./graph/model.ts";
import type { Feature, Link, LinkPath, Service, Transport } from "./mesh.ts";

/** The word for a state, short enough for a table. */
export const reachWords: Record<Reach, string> = {
  gateway: "gateway",
  online: "online",
  relayed: "relayed",
  down: "down",
  waiting: "waiting",
  unknown: "not connected",
};

export const edgeWords: Record<EdgeState, string> = {
  online: "online",
  relayed: "relayed",
  down: "down",
  waiting: "waiting",
  unknown: "not seen from here",
};

export const transportWords: Record<Transport, string> = {
  wireguard: "WireGuard",
  native: "WireGuard, native",
  ice: "WireGuard over ICE",
  libp2p: "WireGuard over libp2p",
};

/** True for a node that packets get to now. */
export function isReached({ reach }: { readonly reach?: Reach }): boolean {
  return reach === "online" || reach === "relayed";
}

/** Why a node is in its state, now in milliseconds: one sentence. */
export function explainReach(node: NodeModel, now: number): string {
  return explainPresence(node, now) ?? explainLink(node);
}

/** What the mesh says of a node that is not up, or undefined for nothing. */
function explainPresence({ reach, presence }: NodeModel, now: number): string | undefined {
  if (presence === undefined || presence.state === "up" || reach === "gateway") {
    return undefined;
  }
  const { state, gatewayId, lastHeard, stopped } = presence;
  const by = gatewayId === "" ? "" : ` by ${label(gatewayId)}`;
  switch (state) {
    case "unknown":
      return gatewayId === "" ? undefined : `It is behind ${label(gatewayId)}, which does not answer.`;
    case "never":
      return "No gateway has heard it since the gateways started. If it runs, check its configuration and that UDP gets through.";
    case "down":
      return lastHeard === undefined
        ? "It is switched off or out of reach."
        : `${stopped ? "It stopped" : "It was last heard"} ${ago(lastHeard, now)}${stopped ? "" : by}.`;
  }
}

function explainLink({ reach, via, link, presence, barred }: NodeModel): string {
  if (barred !== undefined) {
    return barred.acl === ""
      ? "No network ACL lets packets pass between this gateway and it."
      : `The network ACL ${label(barred.acl)} lets nothing pass between this gateway and it.`;
  }
  if (link?.path?.kind === "relayed" && link.online) {
    return `Packets go ${pathName(link.path)}${link.path.reason === "" ? "" : `: ${label(link.path.reason)}`}.`;
  }
  switch (reach) {
    case "gateway":
      return "This gateway answers your browser.";
    case "online":
      return link?.online === false || (link === undefined && presence !== undefined)
        ? "It is up, and nothing was sent between this gateway and it of late."
        : "Packets go straight over UDP, and the last handshake is fresh.";
    case "relayed":
      return via === ""
        ? "UDP does not get through, so packets travel inside a data channel."
        : `It has no link to this gateway; packets go through ${label(via)}.`;
    case "down":
      return "No handshake for 3 minutes: it is switched off, out of reach, or idle without keepalive.";
    case "waiting":
      return "Waiting for its first handshake since this gateway started. If its WireGuard runs already, check its configuration and that UDP gets through.";
    case "unknown":
      return "No link of the mesh leads from this gateway to it.";
  }
}

/** By what path packets go: "direct to 203.0.113.7:51820", "over TURN/TLS of gw1". */
export function pathName({ kind, via, transport, address }: LinkPath): string {
  switch (kind) {
    case "direct":
      return address === "" ? "direct" : `direct to ${label(address)}`;
    case "relayed":
      return via === "" && transport === ""
        ? "inside of another connection"
        : `over TURN${transport === "" ? "" : `/${label(transport)}`}${via === "" ? "" : ` of ${label(via)}`}`;
    case "carried":
      return `by way of ${label(via)}`;
    case "none":
      return "no path";
    case "unknown":
      return "not known yet";
  }
}

/** The path of a link in a table; gateways that tell of none tell of the endpoint. */
export function linkPathName(link: Link): string {
  if (link.path === undefined || link.path.kind === "unknown") {
    return link.endpoint === "" ? "not known yet" : label(link.endpoint);
  }
  return pathName(link.path);
}

/** What there is to know of a path besides: its round trip, since when, and why it is not direct. */
export function linkPathDetail(link: Link, now: number): string {
  const { rttMs, since, reason } = link.path ?? { reason: "" };
  return [
    rttMs === undefined ? "" : `${milliseconds(rttMs)} round trip`,
    since === undefined ? "" : `since ${duration(now - since.getTime())}`,
    label(reason),
  ]
    .filter((text) => text !== "")
    .join(", ");
}

const featureWords: Record<string, string> = {
  NODES: "Node API",
  LEADER_PROXY: "Leader proxy",
  MESH_API: "Mesh API",
  ADMIN_API: "Admin API",
  MEMBERSHIP: "Membership",
  METRICS: "Metrics",
  ICE_NEGOTIATION: "Connections from browsers",
  TURN_SERVER: "TURN server",
  MESH_DNS: "Mesh DNS",
  FORWARD_MESH_DNS: "DNS forwarding",
  STORAGE_QUERIER: "State queries",
  STORAGE_PROVIDER: "Holds state",
};

export function featureWord(feature: Feature): string {
  return featureWords[feature.name] ?? label(feature.name);
}

/** What a service is called: its kind, or its port when it has none. */
export function serviceName(service: Service): string {
  return service.kind === "" ? `${label(service.protocol)} ${service.port}` : label(service.kind);
}

/** True for a service that the HTTP view suits. */
export function speaksHttp(service: { kind: string; port: number }): boolean {
  return service.kind === "" ? [80, 3000, 8000, 8080].includes(service.port) : /^http\b/i.test(service.kind);
}

const candidateWords: Record<string, string> = {
  host: "own address",
  srflx: "address seen from outside",
  prflx: "address learned on the way",
  relay: "TURN relay",
};

/** "198.51.100.23:54012 (address seen from outside, UDP)". */
export function describeEnd(end: PathEnd): string {
  const address = end.address === "" ? "hidden by the browser" : label(end.address);
  return `${address} (${candidateWords[end.type] ?? label(end.type)}, ${label(end.protocol).toUpperCase()})`;
}

export function pathWord(path: Path): string {
  return path.kind === "direct" ? "Direct" : "Relayed";
}

/** What of a node its path depends on. */
type FarNode = Pick<NodeModel, "stock" | "reach">;

/** How far a path leads, to be put behind its word: the gateway ends it for a plain peer. */
export function pathReaches({ stock }: FarNode): string {
  return stock ? "to the gateway" : "";
}

/** Who is at the far end of a path. */
export function farEnd({ stock, reach }: FarNode): string {
  return stock || reach === "gateway" ? "Gateway" : "There";
}

/** Why a path is what it is: one or two sentences. */
export function explainPath(path: Path, node: FarNode): string {
  if (node.stock) {
    return `${wayToGateway(path)}; ${wayToPeer(node.reach)}.`;
  }
  if (path.kind === "relayed") {
    return `${whyRelayed(path)}, so packets go through a TURN relay${relayedOver(path)}.`;
  }
  if (path.local.type === "host" && path.remote.type === "host") {
    return "Both ends see each other's own addresses: no NAT is in between.";
  }
  const end = node.reach === "gateway" ? "gateway" : "node";
  return `Packets go straight between this browser and the ${end}${throughNats(path)}.`;
}

function wayToGateway(path: Path): string {
  return path.kind === "direct"
    ? `Direct to the gateway${throughNats(path)}`
    : `${whyRelayed(path)}, so packets go to the gateway through a TURN relay${relayedOver(path)}`;
}

/** The part of a path that the browser does not see: from the gateway to a plain peer. */
function wayToPeer(reach: Reach): string {
  switch (reach) {
    case "waiting":
      return "from there nothing gets through over WireGuard yet, because the peer has not shaken hands";
    case "down":
      return "from there nothing gets through over WireGuard, because the peer's last handshake is too old";
    default:
      return "from there over WireGuard";
  }
}

function whyRelayed({ local }: Path): string {
  return local.protocol === "udp" ? "No direct path works" : "UDP does not get out of this network";
}

function relayedOver({ local }: Path): string {
  return local.protocol === "udp" ? "" : ` over ${label(local.protocol).toUpperCase()}`;
}

/**
 * A NAT shows when the other side saw an end under a public IPv4 address that it
 * does not know as its own. Within a network such an address says nothing:
 * browsers that hide their own address have it, too.
 */
function throughNats({ local, remote }: Path): string {
  const isTranslated = ({ type, address }: PathEnd): boolean =>
    (type === "srflx" || type === "prflx") && isPublicIPv4(hostOf(address));
  const shows = hostOf(local.address) !== hostOf(remote.address) && [local, remote].some(isTranslated);
  return shows ? ", through the NATs in between" : "";
}

function hostOf(address: string): string {
  return address.replace(/:\d+$/, "");
}

/** False also for loopback, private, link-local and carrier-grade NAT addresses. */
function isPublicIPv4(host: string): boolean {
  return (
    /^\d+\.\d+\.\d+\.\d+$/.test(host) &&
    !/^(0|10|127)\.|^169\.254\.|^172\.(1[6-9]|2\d|3[01])\.|^192\.168\.|^100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\./.test(
      host,
    )
  );
}

/** How a machine that is to run Meshgate joins through the gateway of this page, and what else it may need. */
export function joinAdvice(origin: string): { command: string; pin: string } {
  return {
    command: `meshgate join ${origin} --token TOKEN`,
    pin: origin.startsWith("https:") ? "--pin sha256:HEX" : "",
  };
}

export const stepWords: Record<WayStep | "opening", string> = {
  signaling: "Ask the gateway",
  checking: "Find a path",
  securing: "Secure it",
  opening: "Reach the service",
};

/** One step of a connection as it is shown. */
export interface Progress {
  readonly text: string;
  readonly state: "done" | "active" | "todo";
}

/** Where an attempt to connect stands, given the way to the node. */
export function progress(way: Way | undefined): Progress[] {
  const all = ["signaling", "checking", "securing", "opening"] as const;
  const active =
    way?.state === "connected" ? all.length - 1 : way?.step === undefined ? 0 : all.indexOf(way.step);
  return all.map((step, i) => ({
    text: stepWords[step],
    state: i < active ? "done" : i === active ? "active" : "todo",
  }));
}
