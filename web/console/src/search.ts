// SPDX-License-Identifier: Apache-2.0

import { compareText, type NodeModel } from "./graph/model.ts";
import type { Relay } from "./mesh.ts";

/** How well a node answers a query; 0: not at all. */
function score({ node, id }: NodeModel, words: readonly string[]): number {
  let total = 0;
  for (const word of words) {
    const name = id.toLowerCase();
    const others = [
      ...node.addresses,
      node.zone,
      node.primaryEndpoint,
      ...node.endpoints,
      ...node.services.flatMap(({ kind, port }) => [kind, String(port)]),
    ];
    const best =
      name === word
        ? 5
        : name.startsWith(word)
          ? 4
          : name.includes(word)
            ? 3
            : others.some((other) => other.toLowerCase().startsWith(word))
              ? 2
              : others.some((other) => other.toLowerCase().includes(word))
                ? 1
                : 0;
    if (best === 0) {
      return 0;
    }
    total += best;
  }
  return total;
}

/**
 * The nodes that match every word of the query, best first. It looks at names,
 * addresses, endpoints, zones and services. All nodes for an empty query.
 */
export function searchNodes(nodes: readonly NodeModel[], query: string): readonly NodeModel[] {
  const words = wordsOf(query);
  if (words.length === 0) {
    return nodes;
  }
  return nodes
    .map((node) => ({ node, points: score(node, words) }))
    .filter(({ points }) => points > 0)
    .sort((a, b) => b.points - a.points || compareText(a.node.id, b.node.id))
    .map(({ node }) => node);
}

/** The relays of which each word of the query is in a user, an address or a gateway; in their order. */
export function searchRelays(relays: readonly Relay[], query: string): readonly Relay[] {
  const words = wordsOf(query);
  return relays.filter(({ user, transport, client, addresses, gatewayId }) => {
    const text = [user, transport, client, ...addresses, gatewayId].join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

function wordsOf(query: string): string[] {
  return query
    .toLowerCase()
    .split(/\s+/)
    .filter((word) => word !== "");
}
