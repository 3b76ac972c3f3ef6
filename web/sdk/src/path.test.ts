// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { readPath } from "./path.js";
import { chromiumStats } from "./testing/rtc.js";

function connection(stats: Record<string, unknown>[]): RTCPeerConnection {
  return {
    getStats: async () => new Map(stats.map((entry) => [entry.id, entry])),
  } as unknown as RTCPeerConnection;
}

const remote = { type: "host", protocol: "udp", address: "203.0.113.7", port: 5000 };

suite("the path", () => {
  test("in Chromium is the selected pair of the transport", async () => {
    assert.deepEqual(await readPath(connection(chromiumStats("host")), undefined), {
      kind: "direct",
      rttMs: 12,
      local: { type: "host", protocol: "udp", address: "192.0.2.1", port: 4000 },
      remote,
    });
    const relayed = await readPath(connection(chromiumStats("relay")), undefined);
    assert.equal(relayed.kind, "relayed");
    assert.equal(relayed.local.protocol, "tls");
  });

  test("in Firefox is the pair that is marked", async () => {
    const stats = [
      {
        id: "a",
        type: "candidate-pair",
        state: "succeeded",
        nominated: true,
        localCandidateId: "l0",
        remoteCandidateId: "r",
      },
      {
        id: "b",
        type: "candidate-pair",
        selected: true,
        state: "succeeded",
        nominated: true,
        localCandidateId: "l",
        remoteCandidateId: "r",
      },
      {
        id: "l0",
        type: "local-candidate",
        candidateType: "host",
        address: "192.0.2.9",
        port: 1,
        protocol: "udp",
      },
      {
        id: "l",
        type: "local-candidate",
        candidateType: "prflx",
        address: "192.0.2.1",
        port: 4000,
        protocol: "udp",
      },
      {
        id: "r",
        type: "remote-candidate",
        candidateType: "relay",
        address: "203.0.113.7",
        port: 5000,
        protocol: "udp",
      },
    ];
    assert.deepEqual(await readPath(connection(stats), 34), {
      kind: "relayed",
      rttMs: 34,
      local: { type: "prflx", protocol: "udp", address: "192.0.2.1", port: 4000 },
      remote: { ...remote, type: "relay" },
    });
    const unmarked = stats.map((entry) => ({ ...entry, selected: undefined }));
    assert.equal((await readPath(connection(unmarked), undefined)).local.address, "192.0.2.9");
  });

  test("may have hidden addresses and no round trip time", async () => {
    const stats = chromiumStats("host").map(({ address, port, currentRoundTripTime, ...rest }) => rest);
    assert.deepEqual(await readPath(connection(stats), undefined), {
      kind: "direct",
      local: { type: "host", protocol: "udp", address: "", port: 0 },
      remote: { type: "host", protocol: "udp", address: "", port: 0 },
    });
  });

  test("may not be there", async () => {
    for (const stats of [[], [{ id: "T", type: "transport" }], chromiumStats("host").slice(0, 3)]) {
      await assert.rejects(readPath(connection(stats), undefined), { code: "unavailable" });
    }
  });
});
