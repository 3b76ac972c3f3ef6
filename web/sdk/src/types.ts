// SPDX-License-Identifier: Apache-2.0

import type { DescService } from "@bufbuild/protobuf";
import type { Client, Transport } from "@connectrpc/connect";
import type { MeshgateError } from "./error.js";
import type { TypedEventTarget } from "./events.js";
import type { WatchMeshResponse } from "./gen/meshgate/v1/watch_pb.js";
import type { MeshNode, Status } from "./gen/v1/node_pb.js";

/** Options of {@link createMeshClient}. */
export interface MeshClientOptions {
  /** Where the gateway is, for example `https://gate.example.org`. */
  baseUrl: string | URL;
  /** A token that does not change. Give this or `credentials`. */
  token?: string;
  /**
   * Called before each call to the gateway; returns the token to use. Cache the
   * token inside it; an empty string means none.
   */
  credentials?: () => string | Promise<string>;
  /** `relay` uses TURN servers only; `all`, the default, also direct paths. */
  iceTransportPolicy?: RTCIceTransportPolicy;
  /** How long `connect` tries before it rejects, in milliseconds. Default: 30 000. */
  connectTimeoutMs?: number;
  /** How long a peer connection without connections is kept, in milliseconds. Default: 60 000. */
  idleTimeoutMs?: number;
  /** Used in place of the global `fetch` for calls to the gateway. */
  fetch?: typeof globalThis.fetch;
  /** Used in place of the global `WebSocket`. */
  webSocket?: (url: string, protocol: string) => WebSocket;
  /** Used in place of the global `RTCPeerConnection`, for example to set its configuration. */
  peerConnection?: (configuration: RTCConfiguration) => RTCPeerConnection;
  /** Used for all calls to the gateway in place of {@link createMeshTransport}. */
  transport?: Transport;
}

/** Where to connect to. */
export interface ConnectOptions {
  /** The id of the node that opens the connection. */
  node: string;
  /**
   * What the node connects to: an address, the id of a node, or `localhost` for
   * the node that answers. Default: the mesh address of `node`.
   */
  host?: string;
  /** The port there, 1 to 65535. */
  port: number;
  /** Aborts the attempt, and later the connection. */
  signal?: AbortSignal;
}

/** A candidate of ICE: one end of a network path. */
export interface PathEndpoint {
  /** How the address was found; `relay` is an address of a TURN server. */
  type: RTCIceCandidateType;
  /** `udp` or `tcp`; for a local relay how the TURN server is reached: `udp`, `tcp` or `tls`. */
  protocol: string;
  /** The address; empty where the browser hides it. */
  address: string;
  /** The port; 0 where the browser hides it. */
  port: number;
}

/** How packets travel between this page and a node. */
export interface Path {
  /** `relayed` when either end uses a TURN server. */
  kind: "direct" | "relayed";
  /** Round trip time in milliseconds; absent until it was measured. */
  rttMs?: number;
  /** The end at this page. */
  local: PathEndpoint;
  /** The end at the node. */
  remote: PathEndpoint;
}

/** A way to a service: what {@link MeshConnection} and {@link MeshDatagrams} have in common. */
export interface Connection extends AsyncDisposable {
  /** What arrives. Errors when the connection breaks. */
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  /** What is to be sent. A write waits while too much is under way. */
  readonly writable: WritableStream<Uint8Array>;
  /**
   * Resolves when the connection has ended in order, or because `close()` was
   * called; rejects with a {@link MeshgateError} when it broke.
   */
  readonly closed: Promise<void>;
  /**
   * Ends the connection. What was written is still delivered; what was not yet
   * read is lost. Resolves when the connection is gone, which takes at most 10 s.
   * Harmless when repeated.
   */
  close(): Promise<void>;
  /** How the packets travel now. */
  path(): Promise<Path>;
}

/**
 * A TCP connection from a node to a service. While the service does not read,
 * writes wait; while the page does not read, the service is made to wait.
 * Closing `writable` half-closes the connection: `readable` goes on. Aborting
 * it breaks the connection.
 */
export interface MeshConnection extends Connection {}

/**
 * Datagrams between a node and a UDP service: a write is one datagram, a read
 * is one datagram. They may get lost or overtake each other.
 */
export interface MeshDatagrams extends Connection {
  /** How many datagrams were dropped here because they were not read in time. */
  readonly dropped: number;
}

/** Options of {@link MeshClient.fetch}: those of the global fetch that have a meaning here, and where to go. */
export interface MeshRequestInit {
  /** The method. Default: `GET`. */
  method?: string;
  /** Headers; `host` may be set, too. Not those that frame a message, such as `content-length`. */
  headers?: HeadersInit;
  /** The body. A stream is sent as it is read, chunked; everything else with its length. */
  body?: BodyInit | null;
  /** What to do about a redirect. `manual` returns it as it is. Default: `follow`. */
  redirect?: RequestRedirect;
  /** Aborts the request, and the response while its body is being read. */
  signal?: AbortSignal | null;
  /**
   * The node that opens the connection. Default: the host of the URL. With it,
   * the host of the URL is what {@link ConnectOptions.host} is.
   */
  node?: string;
}

/** A step on the way to a connected node. */
export type ConnectStep =
  /** The gateway was asked to introduce this page to the node. */
  | "signaling"
  /** Offer and answer are exchanged; candidate pairs are being tried. */
  | "checking"
  /** A path was found; the encryption and the control channel are being set up. */
  | "securing";

/** The state of the way to a node, or to the gateway. */
export type MeshState =
  /** Being set up; see `step`. */
  | "connecting"
  /** In use; see `path`. */
  | "connected"
  /** Lost or failed; the next attempt follows in `retryInMs`. */
  | "waiting"
  /** Not in use any more; `error` tells why when that was not wanted. */
  | "closed";

/** What a `state` event tells. */
export interface StateDetail {
  /** Whether it is about the way to one node, or about the stream of `watch` from the gateway. */
  readonly scope: "node" | "gateway";
  /** The id of the node; empty for the gateway. */
  readonly node: string;
  /** The new state. */
  readonly state: MeshState;
  /** While connecting to a node: what is being done. */
  readonly step?: ConnectStep;
  /** While connecting to a node: the candidates of both ends so far. */
  readonly candidates?: { readonly local: readonly PathEndpoint[]; readonly remote: readonly PathEndpoint[] };
  /** When connected to a node: the path, as it was at that moment. */
  readonly path?: Path;
  /** How many attempts have failed in a row. */
  readonly attempt?: number;
  /** When waiting: time until the next attempt, in milliseconds. */
  readonly retryInMs?: number;
  /** Why it is waiting or closed; absent when it ended as wanted. */
  readonly error?: MeshgateError;
}

/** The events of a {@link MeshClient}. */
export interface MeshClientEvents {
  /** The way to a node or to the gateway changed. */
  state: CustomEvent<StateDetail>;
}

/** Options of calls that take nothing but a signal. */
export interface CallOptions {
  /** Aborts the call. */
  signal?: AbortSignal;
}

/** A client of one gateway, and through it of the mesh. Made by {@link createMeshClient}. */
export interface MeshClient extends TypedEventTarget<MeshClientEvents>, AsyncDisposable {
  /** The transport of Connect that all calls use. For clients of further services. */
  readonly transport: Transport;

  /** Opens a TCP connection from a node to a service. Resolves when the service has accepted it. */
  connect(options: ConnectOptions): Promise<MeshConnection>;

  /** Exchanges datagrams with a UDP service, as seen from a node. */
  connectUdp(options: ConnectOptions): Promise<MeshDatagrams>;

  /**
   * An HTTP/1.1 request over the mesh: `fetch("http://web-1:8080/")` asks port
   * 8080 of node `web-1`. Bodies stream both ways, redirects are followed within
   * the mesh, connections are kept and reused. There is no cookie jar, no cache
   * and no CORS: the page gets what the service sends.
   */
  fetch(input: string | URL | Request, init?: MeshRequestInit): Promise<Response>;

  /** All nodes of the mesh, as the gateway knows them. */
  nodes(options?: CallOptions): Promise<MeshNode[]>;

  /** The status of a node; of the gateway when no id is given. */
  status(nodeId?: string, options?: CallOptions): Promise<Status>;

  /**
   * The mesh as it is now, and again after each change. A lost gateway is
   * waited for: the loop ends when the signal aborts or the client is closed,
   * and throws only for errors that waiting does not mend, such as
   * `unauthenticated`.
   */
  watch(options?: CallOptions): AsyncIterable<WatchMeshResponse>;

  /** A typed client of any service of the gateway, such as `Admin` or `Membership`. */
  service<T extends DescService>(service: T): Client<T>;

  /** Closes all connections, and ends all calls that are under way with `canceled`. */
  close(): Promise<void>;
}
