// SPDX-License-Identifier: Apache-2.0

// What the tests of TURN do inside the page; see scenarios.ts. All of it goes over
// relays and nothing else.

import * as sdk from "@meshgate/client";
import { piece, readAll, sha256 } from "./bytes.js";
import type { Access, Service } from "./scenarios.js";

const pieceBytes = 16_384;
/** How many pieces may be on their way. */
const pieceWindow = 16;

/** The local end of the path that a peer connection uses, as its statistics have it. */
export interface LocalEnd {
  readonly candidateType: unknown;
  readonly relayProtocol: unknown;
  readonly url: unknown;
}

/** What went to an echo and what came from it, by its hash. */
export interface Echoed {
  readonly bytes: number;
  readonly sent: string;
  readonly received: string;
}

/**
 * Reaches a service with the SDK over one relay, of those that the gateway names, and
 * sends its echo at least so many bytes. The page asks the gateway over HTTP meanwhile, and the bytes
 * do not end before the answers, of which it returns the status codes.
 */
export async function echoThrough(
  { url, ...options }: Access,
  { node, port }: Service,
  relay: string,
  bytes: number,
): Promise<Echoed & { local: LocalEnd; statuses: number[] }> {
  let pc: RTCPeerConnection | undefined;
  const client = sdk.createMeshClient({
    baseUrl: url,
    ...options,
    iceTransportPolicy: "relay",
    peerConnection: (configuration) => {
      pc = new RTCPeerConnection({ ...configuration, iceServers: only(relay, configuration.iceServers) });
      return pc;
    },
  });
  try {
    const connection = await client.connect({ node, port });
    let arrived = () => {};
    let answered = false;
    const answers = new Promise<void>((resolve) => {
      arrived = resolve;
    })
      .then(() => ask(`${url}/healthz`, 5))
      .finally(() => {
        answered = true;
      });
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    const send = async () => {
      const writer = connection.writable.getWriter();
      while (!answered || pieces.length * pieceBytes < bytes) {
        const next = piece(pieces.length, pieceBytes);
        pieces.push(next);
        await writer.write(next);
      }
      await writer.close();
    };
    const notice = new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        arrived();
        controller.enqueue(chunk);
      },
    });
    const [received, statuses] = await Promise.all([
      readAll(connection.readable.pipeThrough(notice)),
      answers,
      send(),
    ]);
    return { ...(await compare(pieces, [received])), local: await localEnd(pc), statuses };
  } finally {
    await client.close();
  }
}

/** The status codes of some requests, one after the other. */
async function ask(url: string, times: number): Promise<number[]> {
  const statuses: number[] = [];
  while (statuses.length < times) {
    statuses.push((await fetch(url, { cache: "no-store" })).status);
  }
  return statuses;
}

/** Two peer connections, as those of any application, and a channel between them. */
let pair: { near: RTCPeerConnection; far: RTCPeerConnection; channel: RTCDataChannel } | undefined;

/** Opens a channel between two that offer each other a relay alone; see {@link talk}. */
export async function meet(one: RTCIceServer, other: RTCIceServer): Promise<LocalEnd[]> {
  const near = relayed(one);
  const far = relayed(other);
  const channel = near.createDataChannel("bytes");
  channel.binaryType = "arraybuffer";
  pair = { near, far, channel };
  far.ondatachannel = ({ channel: echo }) => {
    echo.binaryType = "arraybuffer";
    echo.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => echo.send(data);
  };
  const opened = new Promise((resolve) => {
    channel.onopen = resolve;
  });
  await gathered(near);
  await far.setRemoteDescription(near.localDescription ?? { type: "offer" });
  await gathered(far);
  await near.setRemoteDescription(far.localDescription ?? { type: "answer" });
  await opened;
  return [await localEnd(near), await localEnd(far)];
}

/** Sends so many bytes over the channel of {@link meet}, and has them back. */
export function talk(bytes: number): Promise<Echoed> {
  if (pair === undefined) {
    throw new Error("nobody has met");
  }
  return exchange(pair.channel, bytes);
}

/** Gives the relays of {@link meet} back. */
export function part(): void {
  pair?.near.close();
  pair?.far.close();
}

/** Sends an echo so many bytes, with few under way. */
function exchange(channel: RTCDataChannel, bytes: number): Promise<Echoed> {
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  const received: ArrayBuffer[] = [];
  const count = Math.ceil(bytes / pieceBytes);
  const send = () => {
    if (pieces.length < count) {
      const next = piece(pieces.length, pieceBytes);
      pieces.push(next);
      channel.send(next);
    }
  };
  return new Promise((resolve, reject) => {
    channel.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => {
      received.push(data);
      send();
      if (received.length === count) {
        resolve(compare(pieces, received));
      }
    };
    channel.onclose = () => reject(new Error("the channel closed"));
    for (let index = 0; index < pieceWindow; index++) {
      send();
    }
  });
}

/** What came of asking for relays: their addresses, and the errors, for which Chromium has its own words. */
export interface Gathered {
  readonly relays: unknown[];
  readonly errors: { readonly url: string; readonly code: number }[];
}

/** Asks a server for relays, by some peer connections at the same time. */
export async function gather(server: RTCIceServer, times = 1): Promise<Gathered> {
  const result: Gathered = { relays: [], errors: [] };
  const all = Array.from({ length: times }, () => relayed(server));
  for (const pc of all) {
    pc.onicecandidate = ({ candidate }) => {
      if (candidate?.type === "relay") {
        result.relays.push(candidate.address);
      }
    };
    pc.onicecandidateerror = ({ url, errorCode }) => {
      result.errors.push({ url, code: errorCode });
    };
    pc.createDataChannel("any");
  }
  try {
    await Promise.all(all.map(gathered));
    return result;
  } finally {
    for (const pc of all) {
      pc.close();
    }
  }
}

function relayed(server: RTCIceServer): RTCPeerConnection {
  return new RTCPeerConnection({ iceServers: [server], iceTransportPolicy: "relay" });
}

/** Makes the local description, with all candidates in it. */
async function gathered(pc: RTCPeerConnection): Promise<void> {
  const complete = new Promise<void>((resolve) => {
    pc.onicegatheringstatechange = () => {
      if (pc.iceGatheringState === "complete") {
        resolve();
      }
    };
  });
  await pc.setLocalDescription();
  await complete;
}

/** The one server of a list, which has to be there. */
function only(relay: string, servers: RTCIceServer[] = []): RTCIceServer[] {
  const found = servers.filter(({ urls }) => [urls].flat().includes(relay));
  if (found.length === 0) {
    throw new Error(`no ${relay} among ${servers.flatMap(({ urls }) => urls)}`);
  }
  return found.map((server) => ({ ...server, urls: [relay] }));
}

async function compare(sent: BlobPart[], received: BlobPart[]): Promise<Echoed> {
  const back = await new Blob(received).arrayBuffer();
  return {
    bytes: back.byteLength,
    sent: await sha256(await new Blob(sent).arrayBuffer()),
    received: await sha256(back),
  };
}

async function localEnd(pc: RTCPeerConnection | undefined): Promise<LocalEnd> {
  const stats = new Map<unknown, Partial<Record<string, unknown>>>();
  (await pc?.getStats())?.forEach((value: unknown, id) => {
    stats.set(id, Object(value));
  });
  const transport = [...stats.values()].find(({ type }) => type === "transport");
  const local = stats.get(stats.get(transport?.selectedCandidatePairId)?.localCandidateId);
  return { candidateType: local?.candidateType, relayProtocol: local?.relayProtocol, url: local?.url };
}
