// SPDX-License-Identifier: Apache-2.0

/**
 * The console's own vocabulary. What a gateway sends is turned into these
 * values in api.ts and nowhere else, so that the rest of the console is free of
 * wire formats and can be run over an invented mesh.
 *
 * Every string in here may have been chosen by a peer. It is shown as text only.
 */

/** A port on a node and what speaks there. */
export interface Service {
  readonly protocol: string;
  readonly port: number;
  /** For example "http", "ssh", "tcp-echo"; empty when the node does not say. */
  readonly kind: string;
}

/** Something a node does for the mesh, and the port it does it on (0: none). */
export interface Feature {
  readonly name: string;
  readonly port: number;
}

export interface MeshNode {
  readonly id: string;
  readonly publicKey: string;
  readonly zone: string;
  /** Mesh addresses, IPv4 first, without prefix length. */
  readonly addresses: readonly string[];
  readonly primaryEndpoint: string;
  readonly endpoints: readonly string[];
  /** Without NODES for a stock WireGuard peer: it runs no Meshgate. */
  readonly features: readonly Feature[];
  readonly services: readonly Service[];
  readonly joinedAt: Date | undefined;
}

/** How an edge is meant to be carried. */
export type Transport = "wireguard" | "native" | "ice" | "libp2p";

export interface MeshEdge {
  readonly source: string;
  readonly target: string;
  readonly weight: number;
  readonly transport: Transport;
}

/** How packets get from the answering gateway to a node. */
export interface LinkPath {
  /** "carried": another node decrypts and forwards them; "relayed": a TURN server, which cannot read them. */
  readonly kind: "unknown" | "none" | "direct" | "relayed" | "carried";
  /** The node that carries packets, or whose TURN server does; empty for neither, and while unknown. */
  readonly via: string;
  /** How a relay is reached: "UDP", "TCP", "TLS"; empty for none, and while unknown. */
  readonly transport: string;
  /** Where packets go, "ip:port"; empty while unknown. */
  readonly address: string;
  readonly rttMs: number | undefined;
  readonly since: Date | undefined;
  /** One sentence on why it is not direct; empty when it is. */
  readonly reason: string;
}

/** The WireGuard link between the answering gateway and one node. */
export interface Link {
  readonly nodeId: string;
  /** True while a handshake is younger than three minutes. */
  readonly online: boolean;
  /** Where packets go, "ip:port" for plain UDP; empty while unknown. */
  readonly endpoint: string;
  /** undefined: none since the gateway started. */
  readonly lastHandshake: Date | undefined;
  readonly receiveBytes: number;
  readonly transmitBytes: number;
  /** Missing from a gateway that does not tell. */
  readonly path?: LinkPath;
}

/** Whether a node is up, which is the same at every gateway. */
export interface Presence {
  readonly nodeId: string;
  /** "unknown": the gateway that would know does not answer. "never": not since the gateways started. */
  readonly state: "unknown" | "up" | "down" | "never";
  /** The gateway that heard it last or that would know; empty for none. */
  readonly gatewayId: string;
  /** undefined: now, or it is not known. */
  readonly lastHeard: Date | undefined;
  /** It is down because it said so. */
  readonly stopped: boolean;
}

/** A node that the network ACLs let this gateway exchange nothing with, up or not. */
export interface Barred {
  readonly nodeId: string;
  /** The network ACL that denies it; empty where none accepts it. */
  readonly acl: string;
}

/** The whole mesh as one gateway sees it at one version. */
export interface Snapshot {
  readonly version: string;
  readonly gatewayId: string;
  readonly domain: string;
  readonly nodes: readonly MeshNode[];
  readonly edges: readonly MeshEdge[];
  readonly links: readonly Link[];
  /** Missing from a gateway that does not tell. */
  readonly presence?: readonly Presence[];
  /** Missing from a gateway that does not tell. */
  readonly barred?: readonly Barred[];
  /** True while no gateway leads: what is shown may be old, and nothing can be changed. */
  readonly leaderless: boolean;
}

/** One peer of a node's WireGuard interface. */
export interface PeerStats {
  readonly publicKey: string;
  readonly endpoint: string;
  readonly lastHandshake: Date | undefined;
  readonly allowedIps: readonly string[];
  readonly receiveBytes: number;
  readonly transmitBytes: number;
}

export interface InterfaceStats {
  readonly name: string;
  readonly kind: string;
  readonly listenPort: number;
  readonly addresses: readonly string[];
  readonly receiveBytes: number;
  readonly transmitBytes: number;
  readonly peers: readonly PeerStats[];
}

/** What a node tells about itself when asked. */
export interface NodeStatus {
  readonly id: string;
  readonly version: string;
  readonly commit: string;
  readonly startedAt: Date | undefined;
  /** "leader", "voter", "observer", "node"; empty when it does not say. */
  readonly role: string;
  readonly leader: string;
  readonly features: readonly Feature[];
  readonly interface: InterfaceStats | undefined;
}

/** What a gateway's TURN server holds for one client, to relay for it. */
export interface Relay {
  readonly id: string;
  readonly gatewayId: string;
  /** Whom it counts for: a node, a user of the mesh, or one of another application. */
  readonly user: string;
  /** How the client reaches the gateway: "UDP", "TCP" or "TLS". */
  readonly transport: string;
  /** Where the client is, "ip:port". */
  readonly client: string;
  /** Where peers reach it, "ip:port", IPv4 first. */
  readonly addresses: readonly string[];
  /** How many peer addresses may send to it. */
  readonly peers: number;
  /** From the client to peers. */
  readonly sentBytes: number;
  /** From peers to the client. */
  readonly receivedBytes: number;
  readonly since: Date | undefined;
}

/** What all gateways relay, but for those that did not answer. */
export interface Relays {
  readonly relays: readonly Relay[];
  readonly silent: readonly { readonly gatewayId: string; readonly reason: string }[];
}
