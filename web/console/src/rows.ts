// SPDX-License-Identifier: Apache-2.0

import { compareText, type EdgeModel, type MeshModel, type NodeModel, type Reach } from "./graph/model.ts";
import type { Link, Relay } from "./mesh.ts";
import { linkPathName } from "./words.ts";

/** What rows can be sorted by. */
export type SortValue = string | number;

export interface Order<K extends string> {
  readonly key: K;
  readonly descending: boolean;
}

/** The order after a click on a column: the same column turns round. */
export function nextOrder<K extends string>(order: Order<K>, key: K): Order<K> {
  return { key, descending: order.key === key && !order.descending };
}

/** Sorts without changing the input; equal rows keep their order. */
export function sortRows<T, K extends string>(
  rows: readonly T[],
  order: Order<K>,
  values: Record<K, (row: T) => SortValue>,
): T[] {
  const value = values[order.key];
  const sign = order.descending ? -1 : 1;
  return [...rows].sort((a, b) => sign * compare(value(a), value(b)));
}

function compare(a: SortValue, b: SortValue): number {
  return typeof a === "number" && typeof b === "number" ? a - b : compareText(String(a), String(b));
}

/** Worst first: what a person looks for in a column of states. */
const reachOrder: Record<Reach, number> = {
  down: 0,
  waiting: 1,
  unknown: 2,
  relayed: 3,
  online: 4,
  gateway: 5,
};

export type NodeColumn =
  | "name"
  | "state"
  | "address"
  | "path"
  | "handshake"
  | "received"
  | "sent"
  | "services";

export const nodeValues: Record<NodeColumn, (row: NodeModel) => SortValue> = {
  name: (row) => row.id,
  state: (row) => reachOrder[row.reach],
  address: (row) => row.node.addresses[0] ?? "",
  path: (row) => (row.link === undefined ? row.via : linkPathName(row.link)),
  handshake: (row) => row.link?.lastHandshake?.getTime() ?? 0,
  received: (row) => row.link?.receiveBytes ?? -1,
  sent: (row) => row.link?.transmitBytes ?? -1,
  services: (row) => row.node.services.length,
};

/** An edge with the link of the gateway that it stands for, if it is one. */
export interface LinkRow {
  readonly edge: EdgeModel;
  readonly link: Link | undefined;
}

export function linkRows(mesh: MeshModel): LinkRow[] {
  return mesh.edges.map((edge) => {
    const far =
      edge.source === mesh.gatewayId ? edge.target : edge.target === mesh.gatewayId ? edge.source : undefined;
    return { edge, link: far === undefined ? undefined : mesh.byId.get(far)?.link };
  });
}

export type LinkColumn = "from" | "to" | "state" | "carrier" | "weight" | "handshake";

export const linkValues: Record<LinkColumn, (row: LinkRow) => SortValue> = {
  from: (row) => row.edge.source,
  to: (row) => row.edge.target,
  state: (row) => ["down", "waiting", "relayed", "online", "unknown"].indexOf(row.edge.state),
  carrier: (row) => row.edge.transport,
  weight: (row) => row.edge.weight,
  handshake: (row) => row.link?.lastHandshake?.getTime() ?? 0,
};

/** The rows of links with an end among the given nodes. */
export function filterLinks(rows: readonly LinkRow[], nodes: readonly NodeModel[]): LinkRow[] {
  const ids = new Set(nodes.map(({ id }) => id));
  return rows.filter(({ edge }) => ids.has(edge.source) || ids.has(edge.target));
}

export type RelayColumn = "user" | "client" | "relay" | "gateway" | "peers" | "sent" | "received" | "age";

export const relayValues: Record<RelayColumn, (row: Relay) => SortValue> = {
  user: (row) => row.user,
  client: (row) => `${row.transport} ${row.client}`,
  relay: (row) => row.addresses[0] ?? "",
  gateway: (row) => row.gatewayId,
  peers: (row) => row.peers,
  sent: (row) => row.sentBytes,
  received: (row) => row.receivedBytes,
  age: (row) => -(row.since?.getTime() ?? 0),
};
