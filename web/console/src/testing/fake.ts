// SPDX-License-Identifier: Apache-2.0

import type { Backend, Path, Target, Way } from "../backend.ts";
import { waySteps } from "../backend.ts";
import type { NodeStatus, Snapshot } from "../mesh.ts";
import { FakeError } from "./fakeerror.ts";
import { fakeFetch, openFakeService } from "./fakeservice.ts";
import { hostileNames, inventMesh } from "./invent.ts";
import { inventRelays } from "./inventrelays.ts";

/** How a test, or a person at the browser's prompt, changes the invented mesh. */
export interface FakeControl {
  /** The mesh as it is now. */
  snapshot(): Snapshot;
  /** Shows another mesh. */
  show(next: Snapshot): void;
  /** Loses the gateway, as a network failure does. */
  lose(): void;
  /** Ends the sign-in, as an expired token does. */
  expire(): void;
}

export interface FakeOptions {
  readonly snapshot: Snapshot;
  /** Milliseconds that each step of a connection takes. */
  readonly stepMs?: number;
}

/** A backend over an invented mesh. The token "wrong" is refused, "offline" finds no gateway. */
export function createFake(token: string, { snapshot, stepMs = 0 }: FakeOptions): Backend & FakeControl {
  let current = snapshot;
  let failure: Error | undefined;
  const wakers = new Set<() => void>();
  const listeners = new Set<(way: Way) => void>();
  const connected = new Map<string, Path>();
  const tell = (way: Way): void => {
    for (const listener of listeners) {
      listener(way);
    }
  };
  const wake = (): void => {
    for (const waker of [...wakers]) {
      waker();
    }
  };
  const changed = (signal: AbortSignal): Promise<void> =>
    new Promise((resolve) => {
      const done = (): void => {
        wakers.delete(done);
        resolve();
      };
      wakers.add(done);
      signal.addEventListener("abort", done, { once: true });
    });

  const reach = async (node: string, signal: AbortSignal): Promise<void> => {
    const known = current.nodes.find(({ id }) => id === node);
    if (known === undefined) {
      throw new FakeError("not_found", `no node ${node}`);
    }
    if (connected.has(node)) {
      return;
    }
    for (const [i, step] of waySteps.entries()) {
      tell({ node, state: "connecting", step, candidates: candidatesAt(i) });
      await wait(stepMs, signal);
    }
    const path = inventPath(current, node);
    connected.set(node, path);
    tell({ node, state: "connected", path });
  };

  return {
    snapshot: () => current,
    show(next) {
      current = next;
      wake();
    },
    lose: () =>
      tell({
        node: "",
        state: "waiting",
        retryInMs: 4000,
        error: new FakeError("unavailable", "connection refused"),
      }),
    expire() {
      failure = new FakeError("unauthenticated", "the token has expired");
      wake();
    },
    async *watch(signal) {
      await wait(stepMs, signal);
      if (token === "wrong" || token === "") {
        throw new FakeError("unauthenticated", "the token is not known");
      }
      if (token === "offline") {
        this.lose();
        await changed(signal);
      }
      while (!signal.aborted && failure === undefined) {
        const next = changed(signal);
        yield current;
        await next;
      }
      if (failure !== undefined) {
        throw failure;
      }
    },
    async status(node, signal) {
      await wait(stepMs, signal);
      return inventStatus(current, node);
    },
    async relays(signal) {
      await wait(stepMs, signal);
      return inventRelays(current);
    },
    async connect(target: Target, signal) {
      await reach(target.node, signal);
      await wait(stepMs, signal);
      return openFakeService(target, () => inventPath(current, target.node));
    },
    async fetch(target, request, signal) {
      await reach(target.node, signal);
      await wait(stepMs, signal);
      return fakeFetch(target, request);
    },
    onWay(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    close() {
      listeners.clear();
    },
  };
}

function wait(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => reject(new FakeError("canceled", "aborted"));
    if (signal.aborted) {
      stop();
      return;
    }
    const timer = setTimeout(resolve, ms);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        stop();
      },
      { once: true },
    );
  });
}

const local = [
  { type: "host", protocol: "udp", address: "" },
  { type: "srflx", protocol: "udp", address: "198.51.100.23:54012" },
  { type: "relay", protocol: "tls", address: "203.0.113.7:61234" },
] as const;
const remote = [
  { type: "host", protocol: "udp", address: "10.0.0.12:40100" },
  { type: "srflx", protocol: "udp", address: "203.0.113.80:40100" },
] as const;
/** The gateway answers for peers without Meshgate. */
const gateway = { type: "host", protocol: "udp", address: "203.0.113.7:40900" } as const;

function candidatesAt(step: number): NonNullable<Way["candidates"]> {
  return { local: local.slice(0, step + 1), remote: remote.slice(0, step) };
}

function inventPath(mesh: Snapshot, node: string): Path {
  const edge = mesh.edges.find(({ source, target }) => source === node || target === node);
  const isStock = mesh.nodes.find(({ id }) => id === node)?.features.length === 0;
  const relayed = edge?.transport === "ice";
  if (isStock && !relayed) {
    return { kind: "direct", rttMs: 11.6, local: local[1], remote: gateway };
  }
  return relayed
    ? { kind: "relayed", rttMs: 48.2, local: local[2], remote: remote[1] }
    : { kind: "direct", rttMs: 11.6, local: local[1], remote: remote[1] };
}

function inventStatus(mesh: Snapshot, id: string): NodeStatus {
  const node = mesh.nodes.find((candidate) => candidate.id === id);
  if (node === undefined) {
    throw new FakeError("not_found", `no node ${id}`);
  }
  const link = mesh.links.find(({ nodeId }) => nodeId === id);
  if (link?.online === false) {
    throw new FakeError("unavailable", `dial ${node.addresses[0]}:8443: i/o timeout`);
  }
  const peerIds = mesh.edges
    .filter(({ source, target }) => source === id || target === id)
    .map(({ source, target }) => (source === id ? target : source));
  const peers = mesh.nodes
    .filter((peer) => peerIds.includes(peer.id))
    .map((peer, i) => ({
      publicKey: `${btoa(peer.id.replace(/[^ -~]/g, "?")).slice(0, 20)}AAAAAAAAAAAAAAAAAAAAAAA=`,
      endpoint: `198.51.100.${i + 1}:51820`,
      lastHandshake: new Date(Date.now() - i * 9000),
      allowedIps: peer.addresses.map((address) => `${address}/${address.includes(":") ? 112 : 32}`),
      receiveBytes: (i + 2) ** 7 * 31,
      transmitBytes: (i + 3) ** 7 * 17,
    }));
  return {
    id,
    version: "0.1.0",
    commit: "3f2c9a1",
    startedAt: new Date(Date.now() - 93_784_000),
    role: node.primaryEndpoint === "" ? "node" : id === "gateway-1" ? "leader" : "voter",
    leader: "gateway-1",
    features: node.features,
    interface: {
      name: "meshgate0",
      kind: "wireguard-go",
      listenPort: 51820,
      addresses: node.addresses,
      receiveBytes: peers.reduce((sum, peer) => sum + peer.receiveBytes, 0),
      transmitBytes: peers.reduce((sum, peer) => sum + peer.transmitBytes, 0),
      peers,
    },
  };
}

/**
 * The backend of vite's fake mode. The page's query chooses the mesh:
 * ?nodes=500, ?hostile, ?still (nothing changes), ?stepMs=0.
 * The control is at window.meshgateFake.
 */
export function createBackend(token: string): Backend {
  const query = new URLSearchParams(location.search);
  const size = Number(query.get("nodes") ?? 30);
  const hostile = query.has("hostile") ? hostileNames : [];
  const fake = createFake(token, {
    snapshot: inventMesh(size + hostile.length, hostile),
    stepMs: Number(query.get("stepMs") ?? 350),
  });
  Object.assign(window, { meshgateFake: fake });
  if (!query.has("still")) {
    const timer = setInterval(() => fake.show(stir(fake.snapshot())), 2500);
    return { ...fake, close: () => clearInterval(timer) };
  }
  return fake;
}

/** The next state of a mesh in which something always happens. */
function stir(mesh: Snapshot): Snapshot {
  const version = Number(mesh.version) + 1;
  return {
    ...mesh,
    version: String(version),
    links: mesh.links.map((link, i) => ({
      ...link,
      online: i % 9 === version % 9 ? !link.online : link.online,
      lastHandshake: link.online && version % 12 === i % 12 ? new Date() : link.lastHandshake,
      receiveBytes: link.receiveBytes + (link.online ? 15_000 + i * 700 : 0),
      transmitBytes: link.transmitBytes + (link.online ? 9_000 + i * 300 : 0),
    })),
  };
}
