// SPDX-License-Identifier: Apache-2.0

import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { anySignal, orAbort, withTimeLimit } from "./async.js";
import type { Channel } from "./channel.js";
import { MeshgateError } from "./error.js";
import { typedEventTarget } from "./events.js";
import { Gateway } from "./gateway.js";
import { Watch, type WatchMeshResponse } from "./gen/meshgate/v1/watch_pb.js";
import { Mesh } from "./gen/v1/mesh_pb.js";
import { type MeshNode, Node, type Status } from "./gen/v1/node_pb.js";
import { WebRTC } from "./gen/v1/webrtc_pb.js";
import { HttpClient } from "./http/fetch.js";
import { negotiate } from "./negotiate.js";
import type { Peer } from "./peer.js";
import { Session } from "./session.js";
import { createMeshTransport } from "./transport.js";
import type {
  CallOptions,
  ConnectOptions,
  MeshClient,
  MeshClientEvents,
  MeshClientOptions,
  MeshConnection,
  MeshDatagrams,
  MeshRequestInit,
  StateDetail,
} from "./types.js";
import { watchMesh } from "./watch.js";

const defaultConnectTimeoutMs = 30_000;
const defaultIdleTimeoutMs = 60_000;

/** Makes a client of the gateway at `baseUrl`. Nothing is sent before the first call. */
export function createMeshClient(options: MeshClientOptions): MeshClient {
  return new GatewayClient(options);
}

const ClientEventTarget = typedEventTarget<MeshClientEvents>();

class GatewayClient extends ClientEventTarget implements MeshClient {
  readonly transport: Transport;
  readonly #options: MeshClientOptions;
  readonly #connectTimeoutMs: number;
  readonly #gateway: Gateway;
  readonly #sessions = new Map<string, Session>();
  readonly #closing = new AbortController();
  readonly #http: HttpClient;

  constructor(options: MeshClientOptions) {
    super();
    this.#options = options;
    this.#connectTimeoutMs = options.connectTimeoutMs ?? defaultConnectTimeoutMs;
    this.transport = options.transport ?? createMeshTransport(options);
    // Of all calls the one with the smallest answer; whether there is such a node is all the same.
    this.#gateway = new Gateway(options.baseUrl, (signal) =>
      this.service(Mesh).getNode({ id: "gateway" }, { signal }),
    );
    this.#http = new HttpClient((target, signal) => {
      // The signal ends the attempt only: the connection may outlive the request that it was opened for.
      return this.#open(target, signal, (peer, destination) => peer.openTcp(destination, undefined));
    });
  }

  connect(options: ConnectOptions): Promise<MeshConnection> {
    const { signal } = options;
    return this.#open(options, signal, (peer, destination) => peer.openTcp(destination, signal));
  }

  connectUdp(options: ConnectOptions): Promise<MeshDatagrams> {
    const { signal } = options;
    return this.#open(options, signal, (peer, destination) => peer.openUdp(destination, signal));
  }

  fetch(input: string | URL | Request, init?: MeshRequestInit): Promise<Response> {
    return this.#http.fetch(input, init);
  }

  nodes(options: CallOptions = {}): Promise<MeshNode[]> {
    return this.#call(options.signal, async (signal) => {
      const { nodes } = await this.service(Mesh).listNodes({}, { signal });
      this.#gateway.tells(nodes);
      return nodes;
    });
  }

  status(nodeId = "", options: CallOptions = {}): Promise<Status> {
    return this.#call(options.signal, (signal) => this.service(Node).getStatus({ id: nodeId }, { signal }));
  }

  watch(options: CallOptions = {}): AsyncIterable<WatchMeshResponse> {
    const signal = anySignal(this.#closing.signal, options.signal);
    return watchMesh(
      this.service(Watch),
      signal,
      (detail) => this.#emit(detail),
      (nodes) => this.#gateway.tells(nodes),
    );
  }

  service<T extends DescService>(service: T): Client<T> {
    return createClient(service, this.transport);
  }

  async close(): Promise<void> {
    const error = new MeshgateError("canceled", "the client was closed");
    this.#closing.abort(error);
    this.#http.closeIdle();
    for (const session of this.#sessions.values()) {
      session.close(error);
    }
    this.#sessions.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #open<T extends Channel>(
    { node, host, port }: ConnectOptions,
    signal: AbortSignal | undefined,
    create: (peer: Peer, destination: string) => T,
  ): Promise<T> {
    return this.#call(signal, async (either) => {
      const destination = formatDestination(node, host ?? "", port);
      const peer = await this.#session(node).peer(either);
      const channel = create(peer, destination);
      const tooLate = () =>
        new MeshgateError("deadline_exceeded", `node ${node} did not say in time whether it could connect`);
      try {
        await withTimeLimit(this.#connectTimeoutMs, tooLate, [either], (limited) =>
          orAbort(channel.opened, limited),
        );
      } catch (reason) {
        channel.reset(MeshgateError.from(reason));
        throw reason;
      }
      return channel;
    });
  }

  /** Runs a call that ends with the client, and whose errors are of the one class. */
  async #call<T>(signal: AbortSignal | undefined, action: (signal: AbortSignal) => Promise<T>): Promise<T> {
    try {
      this.#closing.signal.throwIfAborted();
      return await action(anySignal(this.#closing.signal, signal));
    } catch (reason) {
      throw MeshgateError.from(reason);
    }
  }

  #session(node: string): Session {
    const { iceTransportPolicy = "all", peerConnection = newPeerConnection, idleTimeoutMs } = this.#options;
    const known = this.#sessions.get(node);
    const session =
      known ??
      new Session({
        node,
        connectTimeoutMs: this.#connectTimeoutMs,
        idleTimeoutMs: idleTimeoutMs ?? defaultIdleTimeoutMs,
        negotiate: async (signal, onProgress) => {
          const gateway = this.service(WebRTC);
          const negotiated = await negotiate({
            node,
            gateway,
            iceTransportPolicy,
            peerConnection,
            signal,
            onProgress,
          });
          this.#gateway.answered();
          return negotiated;
        },
        checkRetry: (error, signal) => this.#gateway.checkRetry(error, signal),
        answerer: () => this.#gateway.answererOf(node),
        onState: (detail) => this.#emit(detail),
      });
    this.#sessions.set(node, session);
    return session;
  }

  #emit(detail: StateDetail): void {
    this.dispatchEvent(new CustomEvent("state", { detail }));
  }
}

function newPeerConnection(configuration: RTCConfiguration): RTCPeerConnection {
  if (globalThis.RTCPeerConnection === undefined) {
    throw new MeshgateError(
      "unimplemented",
      "there is no WebRTC here: workers have none, so make the client in a page and transfer the streams",
    );
  }
  return new RTCPeerConnection(configuration);
}

/** The destination part of a label: `host:port`, with brackets around an IPv6 address. */
function formatDestination(node: string, host: string, port: number): string {
  if (node === "") {
    throw new MeshgateError("invalid_argument", "the option node is empty: name the node that is to connect");
  }
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new MeshgateError("invalid_argument", `port ${port} is not a port: use a number from 1 to 65535`);
  }
  return `${host.includes(":") && !host.startsWith("[") ? `[${host}]` : host}:${port}`;
}
