// SPDX-License-Identifier: Apache-2.0

import { MeshgateError } from "./error.js";
import { isCandidateType } from "./ice.js";
import type { Path, PathEndpoint } from "./types.js";

/** An entry of a stats report, of which nothing is certain. */
type Stats = Readonly<Partial<Record<string, unknown>>>;

/**
 * The path that a peer connection uses. Chromium names the selected pair in the
 * stats of the transport, Firefox marks the pair itself.
 */
export async function readPath(pc: RTCPeerConnection, fallbackRttMs: number | undefined): Promise<Path> {
  const stats = new Map<string, Stats>();
  (await pc.getStats()).forEach((value: unknown, id) => {
    stats.set(id, Object(value));
  });
  const pair = selectedPair(stats);
  const local = endpoint(stats, pair?.localCandidateId);
  const remote = endpoint(stats, pair?.remoteCandidateId);
  if (pair === undefined || local === undefined || remote === undefined) {
    throw new MeshgateError("unavailable", "there is no path to the node at the moment");
  }
  const seconds = pair.currentRoundTripTime;
  const rttMs = typeof seconds === "number" ? seconds * 1000 : fallbackRttMs;
  return {
    kind: local.type === "relay" || remote.type === "relay" ? "relayed" : "direct",
    ...(rttMs !== undefined && { rttMs }),
    local,
    remote,
  };
}

function selectedPair(stats: ReadonlyMap<string, Stats>): Stats | undefined {
  const all = [...stats.values()];
  const id = all.find((entry) => entry.type === "transport")?.selectedCandidatePairId;
  const named = typeof id === "string" ? stats.get(id) : undefined;
  const pairs = all.filter((entry) => entry.type === "candidate-pair");
  return (
    named ??
    pairs.find((pair) => pair.selected === true) ??
    pairs.find((pair) => pair.nominated === true && pair.state === "succeeded")
  );
}

function endpoint(stats: ReadonlyMap<string, Stats>, id: unknown): PathEndpoint | undefined {
  const candidate = typeof id === "string" ? stats.get(id) : undefined;
  const type = candidate?.candidateType;
  if (candidate === undefined || !isCandidateType(type)) {
    return undefined;
  }
  const { address, port, protocol, relayProtocol } = candidate;
  return {
    type,
    protocol: String(relayProtocol ?? protocol ?? "udp"),
    address: typeof address === "string" ? address : "",
    port: typeof port === "number" ? port : 0,
  };
}
