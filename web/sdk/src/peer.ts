// SPDX-License-Identifier: Apache-2.0

import type { Channel, ChannelHost } from "./channel.js";
import { type ControlMessage, channelProtocol, parseControl } from "./control.js";
import { MeshgateError } from "./error.js";
import type { Answerer } from "./gateway.js";
import type { Negotiated } from "./negotiate.js";
import { readPath } from "./path.js";
import { TcpChannel } from "./tcp.js";
import type { Path } from "./types.js";
import { UdpChannel } from "./udp.js";

/** How often the node is asked whether it is there. */
const pingIntervalMs = 15_000;
/** How many pings in a row may stay without an answer. */
const maxSilentPings = 2;
/** How long connections may go on over a peer connection that the node wants replaced. */
const retireMs = 600_000;

const answererWords: Record<Answerer, string> = {
  node: "the node",
  gateway: "the gateway, which answers for it,",
  either: "the node, or the gateway if it answers for it,",
};

/** What a {@link Peer} tells its owner. */
export interface PeerEvents {
  /**
   * It is closed. With an error, it broke; that many channels were open then.
   * Called once.
   */
  onClosed(peer: Peer, error: MeshgateError | undefined, abandoned: number): void;
  /** The node wants new connections to go over a new peer connection. */
  onRenew(peer: Peer): void;
  /** The last channel has ended. */
  onIdle(peer: Peer): void;
  /** Packets travel along another path now. */
  onPath(peer: Peer): void;
}

/** A connected peer connection with its control channel, and the channels inside it. */
export class Peer implements ChannelHost {
  readonly #node: string;
  readonly #pc: RTCPeerConnection;
  readonly #control: RTCDataChannel;
  readonly #endSignaling: () => void;
  readonly #answerer: () => Answerer;
  readonly #events: PeerEvents;
  readonly #channels = new Set<Channel>();
  readonly #pings = new Map<number, number>();
  readonly #pingTimer: ReturnType<typeof setInterval>;
  #retireTimer: ReturnType<typeof setTimeout> | undefined;
  #nextPing = 1;
  #rttMs: number | undefined;
  #goodbye = "";
  #closed = false;

  /** Takes over what was negotiated; the answerer is who is at the far end. */
  constructor(
    node: string,
    { pc, control, endSignaling }: Negotiated,
    answerer: () => Answerer,
    events: PeerEvents,
  ) {
    this.#node = node;
    this.#pc = pc;
    this.#control = control;
    this.#endSignaling = endSignaling;
    this.#answerer = answerer;
    this.#events = events;
    control.onmessage = ({ data }: MessageEvent<unknown>) => this.#receive(data);
    control.onclose = () => this.#lost(`${this.#who()} closed the peer connection`);
    pc.onconnectionstatechange = () => {
      if (pc.connectionState === "failed" || pc.connectionState === "closed") {
        this.#lost("the network path broke");
      }
    };
    const ice = pc.sctp?.transport.iceTransport;
    if (ice !== undefined) {
      ice.onselectedcandidatepairchange = () => events.onPath(this);
    }
    this.#pingTimer = setInterval(() => this.#ping(), pingIntervalMs);
    this.#ping();
  }

  /** How many channels are open or being opened. */
  get channels(): number {
    return this.#channels.size;
  }

  /** Opens a TCP channel; see {@link Channel.opened}. */
  openTcp(destination: string, signal: AbortSignal | undefined): TcpChannel {
    const dc = this.#pc.createDataChannel(`tcp:${destination}`, { protocol: channelProtocol, ordered: true });
    return this.#add(new TcpChannel(dc, this, signal));
  }

  /** Opens a UDP channel; see {@link Channel.opened}. */
  openUdp(destination: string, signal: AbortSignal | undefined): UdpChannel {
    const dc = this.#pc.createDataChannel(`udp:${destination}`, {
      protocol: channelProtocol,
      ordered: false,
      maxRetransmits: 0,
    });
    return this.#add(new UdpChannel(dc, this, signal));
  }

  /** How packets travel to the node now. */
  path(): Promise<Path> {
    return readPath(this.#pc, this.#rttMs);
  }

  release(channel: Channel): void {
    this.#channels.delete(channel);
    if (this.#channels.size === 0 && !this.#closed) {
      if (this.#retireTimer !== undefined) {
        this.close();
      } else {
        this.#events.onIdle(this);
      }
    }
  }

  /** Lets the channels end by themselves, within the time that the node allows, and closes then. */
  retire(): void {
    if (this.#channels.size === 0) {
      this.close();
      return;
    }
    const error = new MeshgateError(
      "unavailable",
      "the connection outlived the keys of its peer connection: reconnect",
    );
    this.#retireTimer ??= setTimeout(() => this.close(error), retireMs);
  }

  /** Closes the peer connection; channels that are still open fail with the error. */
  close(error = new MeshgateError("canceled", "the client was closed")): void {
    this.#close(error, undefined);
  }

  #add<T extends Channel>(channel: T): T {
    this.#channels.add(channel);
    return channel;
  }

  /** It broke. Why is for the far end to say, if it was good enough to give a reason. */
  #lost(what: string): void {
    const reason = this.#goodbye === "" ? what : `${this.#who()} said goodbye: ${this.#goodbye}`;
    const error = new MeshgateError("unavailable", `lost node ${this.#node}: ${reason}`);
    this.#close(error, error);
  }

  #who(): string {
    return answererWords[this.#answerer()];
  }

  #close(forChannels: MeshgateError, forOwner: MeshgateError | undefined): void {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    clearInterval(this.#pingTimer);
    clearTimeout(this.#retireTimer);
    const abandoned = this.#channels.size;
    for (const channel of [...this.#channels]) {
      channel.fail(forChannels);
    }
    this.#endSignaling();
    this.#pc.close();
    this.#events.onClosed(this, forOwner, abandoned);
  }

  /** Why the far end leaves. Whoever says so calls itself a node. */
  #reasonOf(message: unknown): string {
    const text = typeof message === "string" ? message : "";
    return this.#answerer() === "gateway" ? text.replace(/^the node\b/, "the gateway") : text;
  }

  #send(message: ControlMessage): void {
    if (this.#control.readyState === "open") {
      this.#control.send(JSON.stringify(message));
    }
  }

  #ping(): void {
    if (this.#pings.size >= maxSilentPings) {
      this.#lost(`${this.#who()} stopped answering`);
      return;
    }
    const id = this.#nextPing++;
    this.#pings.set(id, performance.now());
    this.#send({ type: "ping", id });
  }

  #receive(data: unknown): void {
    const message = typeof data === "string" ? parseControl(data) : undefined;
    switch (message?.type) {
      case "ping":
        this.#send({ type: "pong", id: message.id });
        break;
      case "pong":
        this.#pong(message.id);
        break;
      case "renew":
        this.#events.onRenew(this);
        break;
      case "goodbye":
        this.#goodbye = this.#reasonOf(message.message);
        break;
      case "open":
      case "error":
        this.#byStreamId(message.channel)?.control(message);
        break;
      default:
      // A later version of the protocol: unknown types are to be ignored.
    }
  }

  #pong(id: unknown): void {
    const sent = typeof id === "number" ? this.#pings.get(id) : undefined;
    if (sent !== undefined) {
      this.#rttMs = performance.now() - sent;
      // An answer shows that the node is there, whatever became of the earlier pings.
      this.#pings.clear();
    }
  }

  /** Looked up when needed: a browser may give a channel its id late. */
  #byStreamId(id: unknown): Channel | undefined {
    return [...this.#channels].find((channel) => channel.streamId === id && id !== null);
  }
}
