// SPDX-License-Identifier: Apache-2.0

/**
 * WebRTC without a network: a peer connection whose other end is in the same
 * process. What happens across it happens in order, each event in a task of
 * its own, and can be held up.
 */

import { setImmediate } from "node:timers";

/** Runs actions later, in order, one per task, while it is not held. */
export class Wire {
  #held = false;
  #running = false;
  readonly #actions: (() => void)[] = [];

  /** Runs an action after those before it. */
  post(action: () => void): void {
    this.#actions.push(action);
    this.#run();
  }

  /** Lets nothing through until {@link release}. */
  hold(): void {
    this.#held = true;
  }

  /** Undoes {@link hold}. */
  release(): void {
    this.#held = false;
    this.#run();
  }

  #run(): void {
    if (this.#running || this.#held || this.#actions.length === 0) {
      return;
    }
    this.#running = true;
    setImmediate(() => {
      this.#running = false;
      if (!this.#held) {
        this.#actions.shift()?.();
      }
      this.#run();
    });
  }
}

type Handler<E = Event> = ((event: E) => void) | null;

/** One end of a data channel: the page's, or the node's. */
export class FakeDataChannel {
  binaryType: BinaryType = "blob";
  bufferedAmount = 0;
  bufferedAmountLowThreshold = 0;
  readyState: RTCDataChannelState = "connecting";
  id: number | null = null;
  onopen: Handler = null;
  onclose: Handler = null;
  onerror: Handler = null;
  onmessage: Handler<MessageEvent> = null;
  onbufferedamountlow: Handler = null;
  /** The other end. */
  other: FakeDataChannel | undefined;
  /** The sizes of the binary messages sent from this end. */
  readonly sentSizes: number[] = [];
  /** The text messages sent from this end, parsed. */
  readonly sentControls: Record<string, unknown>[] = [];

  constructor(
    readonly label: string,
    readonly options: RTCDataChannelInit,
    readonly wire: Wire,
  ) {}

  send(data: string | ArrayBuffer | ArrayBufferView<ArrayBuffer>): void {
    if (this.readyState !== "open") {
      throw new DOMException("the channel is not open", "InvalidStateError");
    }
    const message = typeof data === "string" ? data : copy(data);
    const size = typeof message === "string" ? message.length : message.byteLength;
    if (typeof message === "string") {
      this.sentControls.push(JSON.parse(message));
    } else {
      this.sentSizes.push(size);
    }
    this.bufferedAmount += size;
    this.wire.post(() => {
      this.bufferedAmount -= size;
      if (
        this.bufferedAmount <= this.bufferedAmountLowThreshold &&
        this.bufferedAmount + size > this.bufferedAmountLowThreshold
      ) {
        this.onbufferedamountlow?.(new Event("bufferedamountlow"));
      }
      const { other } = this;
      if (other !== undefined && other.readyState !== "closed") {
        other.onmessage?.(new MessageEvent("message", { data: message }));
      }
    });
  }

  close(): void {
    if (this.readyState === "closed" || this.readyState === "closing") {
      return;
    }
    this.readyState = "closing";
    this.wire.post(() => {
      this.end();
      this.other?.end();
    });
  }

  /** The state and the event of a channel that is gone. */
  end(): void {
    if (this.readyState !== "closed") {
      this.readyState = "closed";
      this.onclose?.(new Event("close"));
    }
  }

  /** The state and the event of a channel that is there. */
  open(): void {
    if (this.readyState === "connecting") {
      this.readyState = "open";
      this.onopen?.(new Event("open"));
    }
  }
}

function copy(data: ArrayBuffer | ArrayBufferView<ArrayBuffer>): ArrayBuffer {
  const view =
    data instanceof ArrayBuffer
      ? new Uint8Array(data)
      : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return view.slice().buffer;
}

/** What a test may want of the node at the other end of a peer connection. */
export interface FakeRemote {
  /** The page opened a channel. */
  onChannel(channel: FakeDataChannel): void;
}

/** The page's end of a peer connection, as far as this package uses one. */
export class FakePeerConnection {
  connectionState: RTCPeerConnectionState = "new";
  iceConnectionState: RTCIceConnectionState = "new";
  iceGatheringState: RTCIceGatheringState = "new";
  localDescription: RTCSessionDescriptionInit | null = null;
  onicecandidate: Handler<{ candidate: unknown }> = null;
  oniceconnectionstatechange: Handler = null;
  onicegatheringstatechange: Handler = null;
  onconnectionstatechange: Handler = null;
  readonly sctp = { transport: { iceTransport: { onselectedcandidatepairchange: null } } };
  readonly wire = new Wire();
  readonly channels: FakeDataChannel[] = [];
  readonly remoteCandidates: RTCIceCandidateInit[] = [];
  /** The candidates that it finds. */
  localCandidates = ["candidate:1 1 udp 2130706431 192.0.2.1 4000 typ host"];
  /** What getStats gives. */
  stats: Record<string, unknown>[] = chromiumStats("host");
  /** Whether ICE comes to an end by itself, and to which. */
  outcome: "connected" | "failed" | "never" = "connected";
  #nextId = 2;

  constructor(
    readonly configuration: RTCConfiguration,
    readonly remote: FakeRemote,
  ) {}

  createDataChannel(label: string, options: RTCDataChannelInit): FakeDataChannel {
    if (this.connectionState === "closed") {
      throw new DOMException("the connection is closed", "InvalidStateError");
    }
    const channel = new FakeDataChannel(label, options, this.wire);
    const other = new FakeDataChannel(label, options, this.wire);
    channel.other = other;
    other.other = channel;
    this.channels.push(channel);
    if (this.connectionState === "connected") {
      this.#openChannel(channel);
    }
    return channel;
  }

  async setRemoteDescription(description: RTCSessionDescriptionInit): Promise<void> {
    if (description.sdp !== "offer") {
      throw new DOMException("no session description", "OperationError");
    }
  }

  async setLocalDescription(): Promise<void> {
    this.localDescription = { type: "answer", sdp: "answer" };
    this.iceGatheringState = "gathering";
    // Sooner than the caller can send the answer: it has to keep them back.
    for (const candidate of this.localCandidates) {
      this.emitCandidate(candidate);
    }
    this.wire.post(() => {
      this.iceGatheringState = "complete";
      this.onicecandidate?.({ candidate: null });
      this.onicegatheringstatechange?.(new Event("icegatheringstatechange"));
    });
  }

  async addIceCandidate(candidate: RTCIceCandidateInit): Promise<void> {
    if (candidate.candidate?.includes("unusable")) {
      throw new DOMException("cannot be used", "OperationError");
    }
    this.remoteCandidates.push(candidate);
  }

  async getStats(): Promise<Map<string, unknown>> {
    return new Map(this.stats.map((entry) => [String(entry.id), entry]));
  }

  close(): void {
    if (this.connectionState !== "closed") {
      this.connectionState = "closed";
      for (const channel of this.channels) {
        channel.readyState = "closed";
        channel.other?.end();
      }
    }
  }

  /** Finds a candidate. */
  emitCandidate(candidate: string): void {
    this.onicecandidate?.({
      candidate: {
        candidate,
        toJSON: () => ({ candidate, sdpMid: "0", sdpMLineIndex: 0, usernameFragment: "u" }),
      },
    });
  }

  /** What follows once the node has the answer. */
  answered(): void {
    if (this.outcome === "never") {
      return;
    }
    this.wire.post(() => {
      this.iceConnectionState = this.outcome === "failed" ? "failed" : "connected";
      this.oniceconnectionstatechange?.(new Event("iceconnectionstatechange"));
    });
    this.wire.post(() => this.changeState(this.outcome === "failed" ? "failed" : "connected"));
  }

  /** Changes the state of the connection, as the network would. */
  changeState(state: RTCPeerConnectionState): void {
    if (this.connectionState === "closed") {
      return;
    }
    this.connectionState = state;
    this.onconnectionstatechange?.(new Event("connectionstatechange"));
    if (state === "connected") {
      for (const channel of this.channels) {
        this.#openChannel(channel);
      }
    }
  }

  #openChannel(channel: FakeDataChannel): void {
    this.wire.post(() => {
      channel.id = channel.options.id ?? this.#nextId++;
      const { other } = channel;
      if (other !== undefined && channel.readyState === "connecting") {
        other.id = channel.id;
        other.open();
        this.remote.onChannel(other);
        // As in Chromium, the first messages come before the channel may be sent on.
        this.wire.post(() => this.wire.post(() => channel.open()));
      }
    });
  }
}

/** Stats in the shape of Chromium. */
export function chromiumStats(localType: string): Record<string, unknown>[] {
  return [
    { id: "T", type: "transport", selectedCandidatePairId: "P2" },
    {
      id: "P1",
      type: "candidate-pair",
      nominated: true,
      state: "succeeded",
      localCandidateId: "L1",
      remoteCandidateId: "R1",
    },
    {
      id: "P2",
      type: "candidate-pair",
      nominated: true,
      state: "succeeded",
      localCandidateId: "L2",
      remoteCandidateId: "R1",
      currentRoundTripTime: 0.012,
    },
    {
      id: "L1",
      type: "local-candidate",
      candidateType: "srflx",
      address: "198.51.100.1",
      port: 4001,
      protocol: "udp",
    },
    {
      id: "L2",
      type: "local-candidate",
      candidateType: localType,
      address: "192.0.2.1",
      port: 4000,
      protocol: "udp",
      ...(localType === "relay" && { relayProtocol: "tls" }),
    },
    {
      id: "R1",
      type: "remote-candidate",
      candidateType: "host",
      address: "203.0.113.7",
      port: 5000,
      protocol: "udp",
    },
  ];
}
