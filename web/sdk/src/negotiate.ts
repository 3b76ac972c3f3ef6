// SPDX-License-Identifier: Apache-2.0

import type { Client } from "@connectrpc/connect";
import { deferred, orAbort } from "./async.js";
import { channelProtocol } from "./control.js";
import { MeshgateError } from "./error.js";
import type { DataChannelOffer, WebRTC } from "./gen/v1/webrtc_pb.js";
import { describeCandidate, iceServers, parseCandidate } from "./ice.js";
import { AsyncQueue } from "./queue.js";
import type { ConnectStep, PathEndpoint } from "./types.js";

/** The label of the channel that both sides create, with id 0, before anything else. */
const controlLabel = "meshgate-control";

/** How far a negotiation is. */
export interface Progress {
  step: ConnectStep;
  candidates: { local: PathEndpoint[]; remote: PathEndpoint[] };
}

/** What {@link negotiate} needs. */
export interface NegotiateOptions {
  readonly node: string;
  readonly gateway: Client<typeof WebRTC>;
  readonly iceTransportPolicy: RTCIceTransportPolicy;
  readonly peerConnection: (configuration: RTCConfiguration) => RTCPeerConnection;
  /** Ends the attempt. */
  readonly signal: AbortSignal;
  /** Called at each step and for each candidate. */
  readonly onProgress: (progress: Progress) => void;
}

/** A connected peer connection and its open control channel. */
export interface Negotiated {
  readonly pc: RTCPeerConnection;
  readonly control: RTCDataChannel;
  /** Ends the call that carries late candidates, if it is still under way. */
  readonly endSignaling: () => void;
}

/**
 * Connects to a node. The gateway introduces: the node's offer and our answer,
 * then the candidates of both sides travel over one call, which lasts until all
 * of ours are sent, so that a better path may still be found later.
 */
export async function negotiate(options: NegotiateOptions): Promise<Negotiated> {
  const negotiation = new Negotiation(options);
  try {
    return await orAbort(negotiation.done, options.signal);
  } catch (error) {
    negotiation.abandon();
    throw error;
  }
}

type Request =
  Parameters<Client<typeof WebRTC>["startDataChannel"]>[0] extends AsyncIterable<infer T> ? T : never;

class Negotiation {
  readonly #options: NegotiateOptions;
  readonly #requests = new AsyncQueue<Request>();
  readonly #call = new AbortController();
  readonly #done = deferred<Negotiated>();
  readonly #progress: Progress = { step: "signaling", candidates: { local: [], remote: [] } };
  #pc: RTCPeerConnection | undefined;
  /** Our candidates, until the answer was sent. */
  #early: RTCIceCandidate[] | undefined = [];

  constructor(options: NegotiateOptions) {
    this.#options = options;
    this.#requests.push({ nodeId: options.node, inBand: true });
    options.onProgress(this.#progress);
    this.#receive().catch((error: unknown) => this.#done.reject(MeshgateError.from(error)));
  }

  get done(): Promise<Negotiated> {
    return this.#done.promise;
  }

  /** Gives up. */
  abandon(): void {
    this.#done.reject(new MeshgateError("canceled", "the attempt was given up"));
    this.#call.abort();
    this.#pc?.close();
  }

  async #receive(): Promise<void> {
    const messages = this.#options.gateway.startDataChannel(this.#requests, { signal: this.#call.signal });
    for await (const message of messages) {
      if (this.#pc === undefined) {
        await this.#answer(message);
      }
      await this.#addRemote(message.candidate);
    }
    if (this.#pc === undefined) {
      throw new MeshgateError(
        "unavailable",
        "the gateway ended the introduction without an offer from the node",
      );
    }
  }

  async #answer(offer: DataChannelOffer): Promise<void> {
    const { iceTransportPolicy, peerConnection, node } = this.#options;
    const servers = iceServers(offer);
    const pc = peerConnection({ iceServers: servers, iceTransportPolicy });
    this.#pc = pc;
    const control = pc.createDataChannel(controlLabel, {
      negotiated: true,
      id: 0,
      protocol: channelProtocol,
    });
    this.#watch(pc, control, servers);
    await pc.setRemoteDescription(parseDescription(offer.offer));
    await pc.setLocalDescription();
    const { type, sdp } = pc.localDescription ?? {};
    this.#requests.push({ nodeId: node, inBand: true, answer: JSON.stringify({ type, sdp }) });
    for (const candidate of this.#early ?? []) {
      this.#sendLocal(candidate);
    }
    this.#early = undefined;
    this.#report("checking");
  }

  #watch(pc: RTCPeerConnection, control: RTCDataChannel, servers: RTCIceServer[]): void {
    pc.onicecandidate = ({ candidate }) => {
      if (candidate === null || candidate.candidate === "") {
        return;
      }
      if (this.#early !== undefined) {
        this.#early.push(candidate);
      } else {
        this.#sendLocal(candidate);
      }
    };
    pc.oniceconnectionstatechange = () => {
      if (pc.iceConnectionState === "connected" || pc.iceConnectionState === "completed") {
        this.#report("securing");
      }
    };
    pc.onconnectionstatechange = () => {
      if (pc.connectionState === "failed" || pc.connectionState === "closed") {
        this.#done.reject(this.#noPath(servers));
      }
    };
    control.onopen = () => {
      this.#done.resolve({ pc, control, endSignaling: () => this.#requests.end() });
      pc.onicegatheringstatechange = () => this.#endWhenGathered(pc);
      this.#endWhenGathered(pc);
    };
    control.onclose = () => {
      this.#done.reject(new MeshgateError("unavailable", "the node closed the peer connection at once"));
    };
  }

  #endWhenGathered(pc: RTCPeerConnection): void {
    if (pc.iceGatheringState === "complete") {
      this.#requests.end();
    }
  }

  #sendLocal(candidate: RTCIceCandidate): void {
    this.#requests.push({
      nodeId: this.#options.node,
      inBand: true,
      candidate: JSON.stringify(candidate.toJSON()),
    });
    this.#note(this.#progress.candidates.local, candidate.candidate);
  }

  async #addRemote(text: string): Promise<void> {
    const candidate = parseCandidate(text);
    if (candidate?.candidate === undefined || this.#pc === undefined) {
      return;
    }
    this.#note(this.#progress.candidates.remote, candidate.candidate);
    // One that this browser cannot use must not end the attempt: others follow.
    await this.#pc.addIceCandidate(candidate).catch(() => {});
  }

  #note(list: PathEndpoint[], line: string): void {
    const endpoint = describeCandidate(line);
    if (endpoint !== undefined) {
      list.push(endpoint);
      this.#report(this.#progress.step);
    }
  }

  #report(step: ConnectStep): void {
    this.#progress.step = step;
    this.#options.onProgress(this.#progress);
  }

  #noPath(servers: RTCIceServer[]): MeshgateError {
    const { local, remote } = this.#progress.candidates;
    const relays = servers.some(({ urls }) => String(urls).includes("turn"));
    const advice = relays
      ? "The relay could not be used either: check that this network lets UDP or TLS through to the gateway"
      : "The gateway offers no relay: switch its TURN server on, or let UDP through to the node";
    return new MeshgateError(
      "unavailable",
      `no network path to node ${this.#options.node} was found ` +
        `(addresses tried: ${local.length} here, ${remote.length} there). ${advice}`,
    );
  }
}

function parseDescription(text: string): RTCSessionDescriptionInit {
  const refuse = (cause?: unknown) =>
    new MeshgateError("internal", "the gateway sent an offer that is not a session description", { cause });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw refuse(cause);
  }
  const { type, sdp }: Partial<Record<string, unknown>> = Object(value);
  if (type !== "offer" || typeof sdp !== "string") {
    throw refuse();
  }
  return { type, sdp };
}
