// SPDX-License-Identifier: Apache-2.0

import type { Path, PathEnd, Way, WayStep } from "./backend.ts";
import { label } from "./format.ts";
import type { EdgeState, NodeModel, Reach } from "./graph/model.ts";
import type { Feature, Service, Transport } from "./mesh.ts";

/** The word for a state, short enough for a table. */
export const reachWords: Record<Reach, string> = {
  gateway: "gateway",
  online: "online",
  relayed: "relayed",
  down: "down",
  waiting: "no handshake yet",
  unknown: "not connected",
};

export const edgeWords: Record<EdgeState, string> = {
  online: "online",
  relayed: "relayed",
  down: "down",
  waiting: "no handshake yet",
  unknown: "not seen from here",
};

export const transportWords: Record<Transport, string> = {
  wireguard: "WireGuard",
  native: "WireGuard, native",
  ice: "WireGuard over ICE",
  libp2p: "WireGuard over libp2p",
};

/** Why a node is in its state: one sentence. */
export function explainReach({ reach, via }: NodeModel): string {
  switch (reach) {
    case "gateway":
      return "This gateway answers your browser.";
    case "online":
      return "Packets go straight over UDP, and the last handshake is fresh.";
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
  srflx: "address seen through NAT",
  prflx: "address learned on the way",
  relay: "TURN relay",
};

/** "198.51.100.23:54012, address seen through NAT, UDP". */
export function describeEnd(end: PathEnd): string {
  const address = end.address === "" ? "hidden by the browser" : label(end.address);
  return `${address} (${candidateWords[end.type] ?? label(end.type)}, ${label(end.protocol).toUpperCase()})`;
}

export function pathWord(path: Path): string {
  return path.kind === "direct" ? "Direct" : "Relayed";
}

/** Why a path is what it is: one sentence. */
export function explainPath(path: Path): string {
  if (path.kind === "direct") {
    return path.local.type === "host" && path.remote.type === "host"
      ? "Both ends see each other's own addresses: no NAT is in between."
      : "Packets go straight between this browser and the node, through the NATs in between.";
  }
  return path.local.protocol === "udp"
    ? "No direct path works, so packets go through a TURN relay."
    : `UDP does not get out of this network, so packets go through a TURN relay over ${label(path.local.protocol).toUpperCase()}.`;
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
