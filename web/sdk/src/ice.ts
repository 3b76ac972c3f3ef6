// SPDX-License-Identifier: Apache-2.0

import type { DataChannelOffer } from "./gen/v1/webrtc_pb.js";
import type { PathEndpoint } from "./types.js";

/**
 * The ICE servers of an offer. Those with credentials take the place of the
 * plain list, whose TURN servers are of no use without.
 */
export function iceServers(offer: DataChannelOffer): RTCIceServer[] {
  const servers = offer.iceServers.map(({ urls, username, credential }) => ({
    urls: urls.filter((url) => /^(stun|turn)s?:[^/]/i.test(url)),
    ...(username !== "" && { username, credential }),
  }));
  const plain = offer.stunServers
    .filter((url) => /^stuns?:[^/]/i.test(url))
    .map((urls) => ({ urls: [urls] }));
  return (servers.length > 0 ? servers : plain).filter(({ urls }) => urls.length > 0);
}

/**
 * Reads a candidate as gateways send it: the JSON of RTCIceCandidateInit, or
 * the bare line. Undefined when there is none in it, as at the end of
 * candidates. There is one media section, so an empty `sdpMid` means that one.
 */
export function parseCandidate(text: string): RTCIceCandidateInit | undefined {
  if (!text.startsWith("{")) {
    return text === "" ? undefined : { candidate: text.replace(/^a=/, ""), sdpMLineIndex: 0 };
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  const { candidate, sdpMid, sdpMLineIndex, usernameFragment }: Partial<Record<string, unknown>> =
    Object(value);
  if (typeof candidate !== "string" || candidate === "") {
    return undefined;
  }
  return {
    candidate,
    ...(typeof sdpMid === "string" && sdpMid !== "" && { sdpMid }),
    sdpMLineIndex: typeof sdpMLineIndex === "number" ? sdpMLineIndex : 0,
    ...(typeof usernameFragment === "string" && { usernameFragment }),
  };
}

/** What a candidate line tells about an end of a path; undefined when it is not one (RFC 8839, 5.1). */
export function describeCandidate(line: string): PathEndpoint | undefined {
  const [, , protocol, , address, port, , type] = line.split(" ");
  if (protocol === undefined || address === undefined || !isCandidateType(type)) {
    return undefined;
  }
  return { type, protocol: protocol.toLowerCase(), address, port: Number(port) };
}

/** Whether a word is a candidate type. */
export function isCandidateType(word: unknown): word is RTCIceCandidateType {
  return word === "host" || word === "srflx" || word === "prflx" || word === "relay";
}
