// SPDX-License-Identifier: Apache-2.0

/** The view of a connect page. */
export type ConnectView = "tcp" | "http";

/** Where the reader is. Each route is a hash, so that the gateway serves one page. */
export type Route =
  | { readonly page: "map"; readonly node: string }
  | { readonly page: "nodes"; readonly table: "nodes" | "links" }
  | { readonly page: "node"; readonly node: string }
  | { readonly page: "relays" }
  | {
      readonly page: "connect";
      readonly node: string;
      readonly host: string;
      /** 0: not chosen yet. */
      readonly port: number;
      readonly view: ConnectView | undefined;
    }
  | { readonly page: "lost"; readonly path: string };

/** Reads location.hash, with or without its "#". Never throws. */
export function parseRoute(hash: string): Route {
  const text = hash.replace(/^#/, "");
  const mark = text.indexOf("?");
  const path = mark < 0 ? text : text.slice(0, mark);
  const query = new URLSearchParams(mark < 0 ? "" : text.slice(mark + 1));
  const [page = "", id = "", ...rest] = path.replace(/^\//, "").split("/").map(decode);
  if (rest.length > 0) {
    return { page: "lost", path };
  }
  if (page === "" && id === "") {
    return { page: "map", node: query.get("node") ?? "" };
  }
  if (page === "nodes") {
    return id === ""
      ? { page: "nodes", table: query.get("table") === "links" ? "links" : "nodes" }
      : { page: "node", node: id };
  }
  if (page === "relays" && id === "") {
    return { page: "relays" };
  }
  if (page === "connect" && id !== "") {
    const view = query.get("view");
    return {
      page: "connect",
      node: id,
      host: query.get("host") ?? "",
      port: parsePort(query.get("port") ?? "") ?? 0,
      view: view === "tcp" || view === "http" ? view : undefined,
    };
  }
  return { page: "lost", path };
}

/** The hash of the map, with a node chosen or none. */
export function mapHash(node = ""): string {
  return node === "" ? "#/" : `#/?${new URLSearchParams({ node })}`;
}

/** The hash of the table of nodes or of links. */
export function nodesHash(table: "nodes" | "links" = "nodes"): string {
  return table === "nodes" ? "#/nodes" : "#/nodes?table=links";
}

/** The hash of one node's page. */
export function nodeHash(node: string): string {
  return `#/nodes/${encodeURIComponent(node)}`;
}

/** The hash of the table of what gateways relay. */
export const relaysHash = "#/relays";

/** The hash of the page that connects to a node. */
export function connectHash(
  node: string,
  target: { host?: string; port?: number; view?: ConnectView } = {},
): string {
  const query = new URLSearchParams();
  if (target.host) {
    query.set("host", target.host);
  }
  if (target.port) {
    query.set("port", String(target.port));
  }
  if (target.view) {
    query.set("view", target.view);
  }
  const tail = query.size > 0 ? `?${query}` : "";
  return `#/connect/${encodeURIComponent(node)}${tail}`;
}

/** A port from what a person typed; undefined unless it is 1 to 65535. */
export function parsePort(text: string): number | undefined {
  const trimmed = text.trim();
  if (!/^\d{1,5}$/.test(trimmed)) {
    return undefined;
  }
  const port = Number(trimmed);
  return port >= 1 && port <= 65_535 ? port : undefined;
}

/**
 * Splits "host:port", "[v6]:port" or a bare port. The host may be empty: the
 * node itself. Undefined when it cannot be read.
 */
export function parseTarget(text: string): { host: string; port: number } | undefined {
  const match = /^\s*(?:(?:\[([^\]\s]+)\]|([^:\s[\]]*)):)?(\d+)\s*$/.exec(text);
  const port = parsePort(match?.[3] ?? "");
  return port === undefined ? undefined : { host: match?.[1] ?? match?.[2] ?? "", port };
}

/**
 * The sign-in token of "#token=...", as printed by the command line, or
 * undefined. A second parameter "to" names the page to open after it.
 */
export function takeToken(hash: string): { token: string; rest: string } | undefined {
  const text = hash.replace(/^#/, "");
  if (!text.startsWith("token=")) {
    return undefined;
  }
  // Not URLSearchParams: a "+" belongs to the token.
  const fields = new Map(
    text.split("&").map((field): [string, string] => {
      const mark = field.indexOf("=");
      return [field.slice(0, mark), decode(field.slice(mark + 1))];
    }),
  );
  const to = fields.get("to") ?? "";
  return { token: (fields.get("token") ?? "").trim(), rest: to.startsWith("/") ? `#${to}` : "#/" };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
