// SPDX-License-Identifier: Apache-2.0

import type { Relay, Relays, Snapshot } from "../mesh.ts";

/** Users that are no nodes: of the mesh, of another application, and a static one. */
const users = ["alice", "shop.carol", "static:printer"];
const transports = ["UDP", "TLS", "TCP"];

/** What gateways relay in a mesh: for nodes in data channels, for those of strange names, and for others. */
export function inventRelays(mesh: Snapshot): Relays {
  const gateways = mesh.nodes.filter(({ primaryEndpoint }) => primaryEndpoint !== "");
  const carried = mesh.edges.filter(({ transport }) => transport === "ice").map(({ target }) => target);
  const strange = mesh.nodes.map(({ id }) => id).filter((id) => !/^[\w.-]+$/.test(id));
  const holders = mesh.nodes.length <= 1 ? [] : [...new Set([...carried, ...strange]), ...users];
  return {
    relays: holders.map((user, index) =>
      inventRelay(user, index, gateways[index % gateways.length]?.id ?? ""),
    ),
    silent: [],
  };
}

function inventRelay(user: string, index: number, gatewayId: string): Relay {
  const port = 49_152 + index * 37;
  return {
    id: `${gatewayId}/1d2c3b4a5968${7000 + index}`,
    gatewayId,
    user,
    transport: transports[index % transports.length] ?? "UDP",
    client:
      index % 4 === 3
        ? `[2001:db8::${index + 1}]:${50_000 + index}`
        : `198.51.100.${index + 20}:${50_000 + index}`,
    addresses: [`203.0.113.7:${port}`, ...(index % 4 === 3 ? [`[2001:db8:7::1]:${port}`] : [])],
    peers: (index % 3) + 1,
    sentBytes: (index + 2) ** 6 * 811,
    receivedBytes: (index + 3) ** 6 * 1307,
    since: new Date(Date.now() - (index + 1) ** 3 * 7000),
  };
}
