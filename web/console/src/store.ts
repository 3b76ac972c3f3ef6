// SPDX-License-Identifier: Apache-2.0

import { type Readable, writable } from "svelte/store";
import type { Backend, CreateBackend, HttpRequest, Path, Target, Way } from "./backend.ts";
import { describeMesh, type MeshModel } from "./graph/model.ts";
import { type HttpExchange, sendHttp } from "./http.ts";
import type { NodeStatus, Relays, Snapshot } from "./mesh.ts";
import {
  errorCode,
  explainRelays,
  explainSignIn,
  explainStatus,
  explainWatch,
  noLeader,
  type Problem,
} from "./problem.ts";
import { openTcp, type TcpSession } from "./tcp.ts";

/** How fresh the mesh on the screen is. */
export type Live =
  | { readonly kind: "live" }
  /** The gateway is lost; the next attempt is due at the given time. */
  | { readonly kind: "waiting"; readonly problem: Problem; readonly retryAt: number }
  /** The gateway answers, but no gateway leads. */
  | { readonly kind: "leaderless"; readonly problem: Problem }
  /** It will not be tried again by itself. */
  | { readonly kind: "stopped"; readonly problem: Problem };

/** What a node said when it was last asked. */
export interface StatusReport {
  readonly status: NodeStatus | undefined;
  readonly problem: Problem | undefined;
  readonly loading: boolean;
}

/** What the gateways said when they were last asked what they relay. */
export interface RelaysReport {
  readonly list: Relays | undefined;
  readonly problem: Problem | undefined;
  readonly loading: boolean;
}

/** Everything the pages show. An immutable value; each change makes a new one. */
export interface ConsoleState {
  readonly phase: "signed-out" | "signing-in" | "signed-in";
  readonly signInProblem: Problem | undefined;
  readonly mesh: MeshModel | undefined;
  readonly live: Live;
  /** The text of the search field. */
  readonly query: string;
  /** This browser's ways to nodes, by node id. */
  readonly ways: ReadonlyMap<string, Way>;
  readonly reports: ReadonlyMap<string, StatusReport>;
  readonly relays: RelaysReport;
  /** At most one TCP session and one HTTP exchange per node; they outlive a change of page. */
  readonly tcp: ReadonlyMap<string, TcpSession>;
  readonly http: ReadonlyMap<string, HttpExchange>;
}

export interface Store extends Readable<ConsoleState> {
  signIn(token: string): void;
  signOut(): void;
  /** Asks the gateway for the mesh at once, in place of waiting for the next attempt. */
  retry(): void;
  search(query: string): void;
  /** Asks a node for its status, unless it is being asked already. */
  loadStatus(node: string): void;
  /** Asks the gateways what they relay, unless they are being asked already. */
  loadRelays(): void;
  openTcp(target: Target): void;
  sendHttp(target: Target, request: HttpRequest): void;
  /** Measures this browser's path to a node again, when a connection is open. */
  measure(node: string): Promise<void>;
}

const nothing: ConsoleState = {
  phase: "signed-out",
  signInProblem: undefined,
  mesh: undefined,
  live: { kind: "live" },
  query: "",
  ways: new Map(),
  reports: new Map(),
  relays: { list: undefined, problem: undefined, loading: false },
  tcp: new Map(),
  http: new Map(),
};

/** Makes the one store. The token lives in the backend that it makes and nowhere else. */
export function createStore(createBackend: CreateBackend, now: () => number = Date.now): Store {
  let state = nothing;
  const store = writable(state);
  const change = (part: Partial<ConsoleState>): void => {
    state = { ...state, ...part };
    store.set(state);
  };
  let backend: Backend | undefined;
  let stop = new AbortController();
  let watching = new AbortController();

  /** Ends everything of the present sign-in. */
  const leave = (problem: Problem | undefined): void => {
    stop.abort();
    for (const session of state.tcp.values()) {
      session.close();
    }
    for (const exchange of state.http.values()) {
      exchange.cancel();
    }
    backend?.close();
    backend = undefined;
    change({ ...nothing, signInProblem: problem });
  };

  const fail = (error: unknown): void => {
    if (state.phase === "signing-in") {
      leave(explainSignIn(error));
    } else if (errorCode(error) === "unauthenticated") {
      leave(explainWatch(error));
    } else {
      change({ live: { kind: "stopped", problem: explainWatch(error) } });
    }
  };

  const follow = async (from: Backend): Promise<void> => {
    watching.abort();
    const mine = new AbortController();
    watching = mine;
    const signal = AbortSignal.any([stop.signal, mine.signal]);
    try {
      for await (const snapshot of from.watch(signal)) {
        if (signal.aborted) {
          return;
        }
        change({ phase: "signed-in", mesh: describeMesh(snapshot), live: liveOf(snapshot) });
      }
    } catch (error) {
      if (!signal.aborted) {
        fail(error);
      }
    }
  };

  const noteWay = (way: Way): void => {
    if (way.node !== "") {
      change({ ways: put(state.ways, way.node, way) });
    } else if (way.state === "waiting") {
      const error = way.error ?? new Error("");
      if (state.phase === "signing-in") {
        fail(error);
      } else {
        change({
          live: { kind: "waiting", problem: explainWatch(error), retryAt: now() + (way.retryInMs ?? 0) },
        });
      }
    }
  };

  return {
    subscribe: store.subscribe,
    signIn(token) {
      leave(undefined);
      stop = new AbortController();
      const made = createBackend(token.trim());
      backend = made;
      const mine = stop;
      const off = made.onWay((way) => {
        if (!mine.signal.aborted) {
          noteWay(way);
        }
      });
      mine.signal.addEventListener("abort", off);
      change({ phase: "signing-in" });
      void follow(made);
    },
    signOut() {
      leave(undefined);
    },
    retry() {
      if (backend !== undefined) {
        void follow(backend);
      }
    },
    search(query) {
      change({ query });
    },
    loadStatus(node) {
      const from = backend;
      const known = state.reports.get(node);
      if (from === undefined || known?.loading) {
        return;
      }
      const signal = stop.signal;
      const report = (part: StatusReport): void => {
        if (!signal.aborted) {
          change({ reports: put(state.reports, node, part) });
        }
      };
      report({ status: known?.status, problem: known?.problem, loading: true });
      from.status(node, signal).then(
        (status) => report({ status, problem: undefined, loading: false }),
        (error: unknown) => {
          const problem = explainStatus(error, node, state.mesh?.byId.get(node));
          report({ status: undefined, problem, loading: false });
        },
      );
    },
    loadRelays() {
      if (backend === undefined || state.relays.loading) {
        return;
      }
      const signal = stop.signal;
      const report = (relays: RelaysReport): void => {
        if (!signal.aborted) {
          change({ relays });
        }
      };
      report({ ...state.relays, loading: true });
      backend.relays(signal).then(
        (list) => report({ list, problem: undefined, loading: false }),
        (error: unknown) => report({ list: undefined, problem: explainRelays(error), loading: false }),
      );
    },
    openTcp(target) {
      if (backend !== undefined) {
        state.tcp.get(target.node)?.close();
        change({ tcp: put(state.tcp, target.node, openTcp(backend, target)) });
      }
    },
    sendHttp(target, request) {
      if (backend !== undefined) {
        state.http.get(target.node)?.cancel();
        change({ http: put(state.http, target.node, sendHttp(backend, target, request)) });
      }
    },
    async measure(node) {
      const path: Path | undefined = await state.tcp
        .get(node)
        ?.path()
        .catch(() => undefined);
      const way = state.ways.get(node);
      if (path !== undefined && way?.state === "connected") {
        change({ ways: put(state.ways, node, { ...way, path }) });
      }
    },
  };
}

function liveOf(snapshot: Snapshot): Live {
  return snapshot.leaderless ? { kind: "leaderless", problem: noLeader } : { kind: "live" };
}

function put<K, V>(map: ReadonlyMap<K, V>, key: K, value: V): ReadonlyMap<K, V> {
  return new Map(map).set(key, value);
}
