// SPDX-License-Identifier: Apache-2.0

import type { NodeStatus, Relays, Snapshot } from "./mesh.ts";

/** One end of the path between this browser and a node: an ICE candidate. */
export interface PathEnd {
  /** "host", "srflx", "prflx" or "relay". */
  readonly type: string;
  /** "udp" or "tcp"; for a local relay how the TURN server is reached: also "tls". */
  readonly protocol: string;
  /** "ip:port"; empty where the browser hides it. */
  readonly address: string;
}

/** The path that packets take between this browser and a node. */
export interface Path {
  readonly kind: "direct" | "relayed";
  readonly rttMs: number | undefined;
  readonly local: PathEnd;
  readonly remote: PathEnd;
}

/** What happens on the way to a node, in order. */
export const waySteps = ["signaling", "checking", "securing"] as const;
export type WayStep = (typeof waySteps)[number];

/** The way from this browser to a node, or to the gateway. */
export interface Way {
  /** Empty: the gateway. */
  readonly node: string;
  readonly state: "connecting" | "connected" | "waiting" | "closed";
  /** While connecting to a node. */
  readonly step?: WayStep;
  /** While connecting to a node: the candidates so far. */
  readonly candidates?: { readonly local: readonly PathEnd[]; readonly remote: readonly PathEnd[] };
  /** While connected to a node. */
  readonly path?: Path;
  /** While waiting: milliseconds until the next attempt. */
  readonly retryInMs?: number;
  /** Why it waits or is closed, when that was not wanted. */
  readonly error?: Error;
}

/** Where a connection goes. */
export interface Target {
  /** The node that opens it. */
  readonly node: string;
  /** Empty: the node itself. */
  readonly host: string;
  readonly port: number;
}

/** A byte stream to a target. */
export interface Connection {
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
  /** Resolves when both sides have ended or close was called; rejects when the connection broke. */
  readonly closed: Promise<void>;
  close(): Promise<void>;
  path(): Promise<Path>;
}

/** A request of the HTTP view. */
export interface HttpRequest {
  readonly method: string;
  /** Begins with "/". */
  readonly path: string;
  readonly headers: readonly (readonly [string, string])[];
  /** undefined: no body. */
  readonly body: string | undefined;
}

/**
 * Everything the console asks of a gateway. api.ts implements it with the client
 * library, testing/fake.ts with an invented mesh. Errors carry a string "code".
 */
export interface Backend {
  /**
   * The mesh now, and again after each change. A lost gateway is waited for and
   * told through onWay; it throws only for errors that waiting does not mend.
   */
  watch(signal: AbortSignal): AsyncIterable<Snapshot>;
  status(node: string, signal: AbortSignal): Promise<NodeStatus>;
  /** What the gateways relay now. */
  relays(signal: AbortSignal): Promise<Relays>;
  connect(target: Target, signal: AbortSignal): Promise<Connection>;
  fetch(target: Target, request: HttpRequest, signal: AbortSignal): Promise<Response>;
  /** Calls listener for each change of a way until the returned function is called. */
  onWay(listener: (way: Way) => void): () => void;
  close(): void;
}

/** Makes a backend that signs in with a token. */
export type CreateBackend = (token: string) => Backend;
