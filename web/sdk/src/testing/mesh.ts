// SPDX-License-Identifier: Apache-2.0

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ServiceImpl, Transport } from "@connectrpc/connect";
import { type Code, ConnectError, createRouterTransport } from "@connectrpc/connect";
import { createMeshClient } from "../client.js";
import { Watch } from "../gen/meshgate/v1/watch_pb.js";
import { Mesh } from "../gen/v1/mesh_pb.js";
import { Feature, type MeshNodeSchema, Node } from "../gen/v1/node_pb.js";
import { type StartDataChannelRequest, WebRTC } from "../gen/v1/webrtc_pb.js";
import { AsyncQueue } from "../queue.js";
import type { MeshClient, MeshClientOptions, StateDetail } from "../types.js";
import { type FakeDataChannel, FakePeerConnection } from "./rtc.js";

const windowBytes = 1024 * 1024;

/** What a service does with a TCP connection to it. */
export type TcpService = (stream: ServerStream) => Promise<void> | void;
/** What a service does with a datagram. */
export type UdpService = (
  datagram: Uint8Array<ArrayBuffer>,
  reply: (datagram: Uint8Array<ArrayBuffer>) => void,
) => void;

const clients = new Set<MeshClient>();

/** Closes all clients that tests have made; to be called after each test. */
export async function closeClients(): Promise<void> {
  await Promise.all([...clients].map((client) => client.close()));
  clients.clear();
}

/** A gateway and the nodes behind it, for tests of clients. */
export class FakeMesh {
  /** Services by label, such as `tcp::80`. */
  readonly tcp = new Map<string, TcpService>();
  readonly udp = new Map<string, UdpService>();
  /** Each peer connection that was made, in order. */
  readonly peers: FakePeerConnection[] = [];
  /** All requests of all introductions, in order. */
  readonly requests: StartDataChannelRequest[] = [];
  /** How many introductions were ended by the client in order. */
  halfClosed = 0;
  /** Errors that the next introductions end with, one each. */
  readonly failures: ConnectError[] = [];
  /** What the offer contains besides the offer. */
  offer: { iceServers?: { urls: string[]; username: string; credential: string }[]; stunServers?: string[] } =
    {};
  /** The candidates that the node sends. */
  candidates = ["candidate:9 1 udp 1 203.0.113.7 5000 typ host"];
  /** Changes a peer connection before it is used. */
  onPeer: (peer: FakePeerConnection) => void = () => {};
  /** Serves UDP channels in place of the services. */
  onUdp: ((channel: FakeDataChannel) => void) | undefined;
  /** The nodes that the gateway tells of. */
  nodes: MessageInitShape<typeof MeshNodeSchema>[] = [
    { id: "gateway", features: [{ feature: Feature.NODES }] },
    { id: "web-1", features: [{ feature: Feature.NODES }] },
  ];
  /** Called when an introduction begins; it waits for the result. */
  onIntroduction: () => Promise<void> | void = () => {};
  /** The streams that are open, by label, last one wins. */
  readonly streams = new Map<string, ServerStream>();
  readonly transport: Transport;

  constructor(services: { watch?: ServiceImpl<typeof Watch>["watchMesh"] } = {}) {
    this.transport = createRouterTransport(({ service }) => {
      service(WebRTC, { startDataChannel: (requests, { signal }) => this.#introduce(requests, signal) });
      service(Mesh, { listNodes: () => ({ nodes: this.nodes }) });
      service(Node, { getStatus: ({ id }) => ({ id: id || "gateway", version: "1" }) });
      if (services.watch !== undefined) {
        service(Watch, { watchMesh: services.watch });
      }
    });
  }

  /** A client of this mesh, and the states that it told of. */
  client(options: Partial<MeshClientOptions> = {}): MeshClient & { readonly states: StateDetail[] } {
    const client = createMeshClient({
      baseUrl: "https://gate.example.org",
      transport: this.transport,
      peerConnection: (configuration) => {
        const peer = new FakePeerConnection(configuration, {
          onChannel: (channel) => this.#serve(peer, channel),
        });
        this.peers.push(peer);
        this.onPeer(peer);
        return peer as unknown as RTCPeerConnection;
      },
      ...options,
    });
    clients.add(client);
    const states: StateDetail[] = [];
    client.addEventListener("state", ({ detail }) => states.push(detail));
    return Object.assign(client, { states });
  }

  /** The peer connection made last. */
  get peer(): FakePeerConnection {
    return defined(this.peers.at(-1));
  }

  /** Sends a message over the control channel of a peer connection. */
  control(peer: FakePeerConnection, message: Record<string, unknown>): void {
    defined(peer.channels[0]?.other).send(JSON.stringify(message));
  }

  async *#introduce(requests: AsyncIterable<StartDataChannelRequest>, signal: AbortSignal) {
    await this.onIntroduction();
    const failure = this.failures.shift();
    if (failure !== undefined) {
      throw failure;
    }
    const out = new AsyncQueue<{ candidate: string }>();
    signal.addEventListener("abort", () => out.end());
    void this.#take(requests, out).catch(() => out.end());
    yield { offer: JSON.stringify({ type: "offer", sdp: "offer" }), ...this.offer };
    yield* out;
  }

  async #take(
    requests: AsyncIterable<StartDataChannelRequest>,
    out: AsyncQueue<{ candidate: string }>,
  ): Promise<void> {
    for await (const request of requests) {
      this.requests.push(request);
      if (request.answer !== "") {
        for (const candidate of this.candidates) {
          out.push({ candidate });
        }
        this.peer.answered();
      }
    }
    this.halfClosed++;
    out.end();
  }

  #serve(peer: FakePeerConnection, channel: FakeDataChannel): void {
    if (channel.id === 0) {
      channel.onmessage = ({ data }) => {
        const message = JSON.parse(String(data));
        if (message.type === "ping") {
          channel.send(JSON.stringify({ type: "pong", id: message.id }));
        }
      };
      return;
    }
    if (channel.label.startsWith("udp:")) {
      this.#serveUdp(peer, channel);
    } else {
      this.#serveTcp(channel);
    }
  }

  #serveTcp(channel: FakeDataChannel): void {
    const service = this.tcp.get(channel.label);
    const stream = new ServerStream(channel);
    this.streams.set(channel.label, stream);
    if (service === undefined) {
      stream.send({ type: "error", code: "permission_denied", message: `${channel.label} is not exposed` });
      channel.close();
      return;
    }
    Promise.resolve(service(stream)).catch((error: unknown) => {
      if (channel.readyState === "open") {
        stream.send({ type: "reset", code: "internal", message: String(error) });
        channel.close();
      }
    });
  }

  #serveUdp(peer: FakePeerConnection, channel: FakeDataChannel): void {
    if (this.onUdp !== undefined) {
      this.onUdp(channel);
      return;
    }
    const service = this.udp.get(channel.label);
    if (service === undefined) {
      // The two are not in step: the end of the channel may overtake its reason.
      const error = { type: "error", channel: channel.id, code: "permission_denied", message: "not exposed" };
      channel.close();
      peer.wire.post(() => peer.wire.post(() => this.control(peer, error)));
      return;
    }
    channel.onmessage = ({ data }) => service(new Uint8Array(data), (datagram) => channel.send(datagram));
    this.control(peer, { type: "open", channel: channel.id });
  }
}

/** The node's side of a TCP channel. */
export class ServerStream {
  readonly #inbox = new AsyncQueue<Uint8Array<ArrayBuffer>>();
  readonly #wake: (() => void)[] = [];
  #credit = windowBytes;
  #sentFin = false;
  #gotFin = false;
  /** How many bytes came, read or not. */
  received = 0;
  /** How many bytes were sent. */
  sent = 0;
  /** The control messages that came. */
  readonly controls: Record<string, unknown>[] = [];

  constructor(readonly channel: FakeDataChannel) {
    channel.onmessage = ({ data }) => {
      if (typeof data === "string") {
        this.#control(JSON.parse(data));
      } else {
        this.received += data.byteLength;
        this.#inbox.push(new Uint8Array(data));
      }
    };
    channel.onclose = () => this.#inbox.fail(new Error("closed"));
  }

  /** Says that the connection to the service stands. */
  open(): void {
    this.send({ type: "open", window: windowBytes });
  }

  /** The next bytes, for which credit is given back; undefined after a fin. */
  async read(): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const bytes = await this.#inbox.next();
    if (bytes !== undefined && this.channel.readyState === "open") {
      this.send({ type: "window", bytes: bytes.byteLength });
    }
    return bytes;
  }

  /** Sends bytes as far as there is credit, and waits for more. */
  async write(bytes: Uint8Array<ArrayBuffer>): Promise<void> {
    for (let offset = 0; offset < bytes.byteLength; ) {
      while (this.#credit === 0) {
        await new Promise<void>((resolve) => this.#wake.push(resolve));
      }
      const part = bytes.slice(offset, offset + Math.min(16_384, this.#credit));
      this.#credit -= part.byteLength;
      this.sent += part.byteLength;
      offset += part.byteLength;
      this.channel.send(part);
    }
  }

  /** Ends this direction. */
  fin(): void {
    this.#sentFin = true;
    this.send({ type: "fin" });
    this.#closeAfterFins();
  }

  /** Sends a control message. */
  send(message: Record<string, unknown>): void {
    this.channel.send(JSON.stringify(message));
  }

  #control(message: Record<string, unknown>): void {
    this.controls.push(message);
    if (message.type === "window") {
      this.#credit += Number(message.bytes);
      for (const wake of this.#wake.splice(0)) {
        wake();
      }
    } else if (message.type === "fin") {
      this.#gotFin = true;
      this.#inbox.end();
      this.#closeAfterFins();
    }
  }

  #closeAfterFins(): void {
    if (this.#sentFin && this.#gotFin) {
      this.channel.close();
    }
  }
}

/** Sends back what comes, and a fin after a fin. */
export const echo: TcpService = async (stream) => {
  stream.open();
  for (let bytes = await stream.read(); bytes !== undefined; bytes = await stream.read()) {
    await stream.write(bytes);
  }
  stream.fin();
};

/** An RPC error. */
export function rpcError(code: Code, message: string): ConnectError {
  return new ConnectError(message, code);
}

/** The value, which must be there. */
export function defined<T>(value: T | undefined | null): T {
  if (value === undefined || value === null) {
    throw new Error("a value is missing");
  }
  return value;
}
