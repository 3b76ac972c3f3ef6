// SPDX-License-Identifier: Apache-2.0

import { deferred, orAbort, pause, withTimeLimit } from "./async.js";
import { backoffMs } from "./backoff.js";
import { isTransient, MeshgateError } from "./error.js";
import type { Answerer } from "./gateway.js";
import type { Negotiated, Progress } from "./negotiate.js";
import { Peer, type PeerEvents } from "./peer.js";
import type { StateDetail } from "./types.js";

/** How long one attempt to reach a node may take. */
const attemptTimeoutMs = 20_000;
/** How long a node that was lost while in use is looked for even if nobody waits for it. */
const searchMs = 120_000;

/** What a {@link Session} needs. */
export interface SessionOptions {
  readonly node: string;
  readonly connectTimeoutMs: number;
  readonly idleTimeoutMs: number;
  readonly negotiate: (signal: AbortSignal, onProgress: (progress: Progress) => void) => Promise<Negotiated>;
  /** Called when an attempt has failed that may be repeated; rejects when that is of no use. */
  readonly checkRetry: (error: MeshgateError, signal: AbortSignal) => Promise<void>;
  /** Who is at the far end, as far as is known by now. */
  readonly answerer: () => Answerer;
  /** Called at each change of state. */
  readonly onState: (detail: StateDetail) => void;
}

/**
 * The way to one node: at most one peer connection for new connections, shared
 * by all who want one, made when the first asks and closed some time after the
 * last has left. When it breaks, or when the node asks for a new one, another
 * is looked for, with growing pauses between the attempts.
 */
export class Session implements PeerEvents {
  readonly #options: SessionOptions;
  #peer: Peer | undefined;
  /** Those that carry old connections only. */
  readonly #retired = new Set<Peer>();
  #search: Search | undefined;
  #idleTimer: ReturnType<typeof setTimeout> | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
  }

  /** The peer connection for new connections, as soon as there is one. To be used at once. */
  async peer(signal: AbortSignal): Promise<Peer> {
    if (this.#peer !== undefined) {
      return this.#peer;
    }
    const search = this.#startSearch();
    const { connectTimeoutMs } = this.#options;
    search.waiting++;
    try {
      return await withTimeLimit(
        connectTimeoutMs,
        () => this.#tooLate(search),
        [signal],
        (limited) => orAbort(search.found, limited),
      );
    } finally {
      search.waiting--;
      search.endUnlessWanted();
    }
  }

  /** Closes everything at once. */
  close(error: MeshgateError): void {
    this.#search?.abort(error);
    for (const peer of [this.#peer, ...this.#retired]) {
      peer?.close(error);
    }
  }

  onRenew(peer: Peer): void {
    if (peer === this.#peer) {
      this.#startSearch().extend(searchMs);
    }
  }

  onIdle(peer: Peer): void {
    if (peer === this.#peer) {
      clearTimeout(this.#idleTimer);
      this.#idleTimer = setTimeout(() => {
        if (peer.channels === 0) {
          peer.close();
        }
      }, this.#options.idleTimeoutMs);
    }
  }

  onPath(peer: Peer): void {
    void this.#emitConnected(peer);
  }

  onClosed(peer: Peer, error: MeshgateError | undefined, abandoned: number): void {
    this.#retired.delete(peer);
    if (peer !== this.#peer) {
      return;
    }
    this.#peer = undefined;
    clearTimeout(this.#idleTimer);
    if (error !== undefined && abandoned > 0) {
      this.#startSearch(error).extend(searchMs);
    } else {
      this.#emitClosed(error);
    }
  }

  /** Joins the search that is under way, or starts one; the error is what made it necessary. */
  #startSearch(lost?: MeshgateError): Search {
    if (this.#search === undefined) {
      const search = new Search();
      this.#search = search;
      this.#find(search, lost).then(
        (peer) => search.settle(peer),
        (error: unknown) => search.fail(error),
      );
    }
    return this.#search;
  }

  async #find(search: Search, lost: MeshgateError | undefined): Promise<Peer> {
    search.lastError = lost;
    try {
      for (let failures = lost === undefined ? 0 : 1; ; failures++) {
        if (search.lastError !== undefined) {
          const retryInMs = backoffMs(failures);
          this.#emitSearching({ state: "waiting", attempt: failures, retryInMs, error: search.lastError });
          await pause(retryInMs, search.signal);
        }
        const peer = await this.#attempt(search);
        if (peer !== undefined) {
          return peer;
        }
      }
    } catch (reason) {
      const error = MeshgateError.from(reason);
      if (this.#peer === undefined) {
        this.#emitClosed(error);
      }
      throw error;
    } finally {
      search.end();
      this.#search = undefined;
    }
  }

  /** One attempt: a peer, or undefined when another attempt may do better. */
  async #attempt(search: Search): Promise<Peer | undefined> {
    const { node, negotiate, answerer, checkRetry } = this.#options;
    const tooLate = () =>
      new MeshgateError(
        "deadline_exceeded",
        `node ${node} did not answer within ${attemptTimeoutMs / 1000} s`,
      );
    try {
      const negotiated = await withTimeLimit(attemptTimeoutMs, tooLate, [search.signal], (signal) =>
        negotiate(signal, ({ step, candidates: { local, remote } }) => {
          const candidates = { local: [...local], remote: [...remote] };
          this.#emitSearching({ state: "connecting", step, candidates });
        }),
      );
      return this.#adopt(new Peer(node, negotiated, answerer, this));
    } catch (reason) {
      const error = MeshgateError.from(reason);
      search.lastError = error;
      if (search.signal.aborted || !isTransient(error) || !search.wanted) {
        throw error;
      }
      await checkRetry(error, search.signal);
      return undefined;
    }
  }

  #adopt(peer: Peer): Peer {
    const old = this.#peer;
    this.#peer = peer;
    if (old !== undefined) {
      this.#retired.add(old);
      old.retire();
    }
    this.onIdle(peer);
    void this.#emitConnected(peer);
    return peer;
  }

  #tooLate({ lastError }: Search): MeshgateError {
    const { node, connectTimeoutMs } = this.#options;
    const text = `node ${node} was not reached within ${connectTimeoutMs / 1000} s`;
    return lastError === undefined
      ? new MeshgateError("deadline_exceeded", `${text}: check that it is online`)
      : new MeshgateError("deadline_exceeded", `${text}: ${lastError.message}`, { cause: lastError });
  }

  async #emitConnected(peer: Peer): Promise<void> {
    const path = await peer.path().catch(() => undefined);
    if (peer === this.#peer) {
      this.#emit({ state: "connected", ...(path !== undefined && { path }) });
    }
  }

  #emitClosed(error: MeshgateError | undefined): void {
    // What was ended on purpose has no error.
    this.#emit({ state: "closed", ...(error !== undefined && error.code !== "canceled" && { error }) });
  }

  /** While the old peer connection still serves, a search for a new one is nobody's concern. */
  #emitSearching(detail: Omit<StateDetail, "scope" | "node">): void {
    if (this.#peer === undefined) {
      this.#emit(detail);
    }
  }

  #emit(detail: Omit<StateDetail, "scope" | "node">): void {
    this.#options.onState({ scope: "node", node: this.#options.node, ...detail });
  }
}

/** A search for a peer connection that some wait for. */
class Search {
  /** How many wait. */
  waiting = 0;
  /** Why the last attempt failed. */
  lastError: MeshgateError | undefined;
  readonly #found = deferred<Peer>();
  readonly #abort = new AbortController();
  #unasked: ReturnType<typeof setTimeout> | undefined;

  /** What was found. */
  get found(): Promise<Peer> {
    return this.#found.promise;
  }

  /** Aborts when the search is to end. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Whether it is worth going on. */
  get wanted(): boolean {
    return this.waiting > 0 || this.#unasked !== undefined;
  }

  /** Goes on for that long even if nobody waits. */
  extend(ms: number): void {
    clearTimeout(this.#unasked);
    this.#unasked = setTimeout(() => {
      this.#unasked = undefined;
      this.endUnlessWanted();
    }, ms);
  }

  /** Ends the search when nobody is left who wants it. */
  endUnlessWanted(): void {
    if (!this.wanted) {
      this.abort(this.lastError ?? new MeshgateError("canceled", "nobody waits for the node any more"));
    }
  }

  /** The search is over. */
  end(): void {
    clearTimeout(this.#unasked);
  }

  abort(error: MeshgateError): void {
    this.#abort.abort(error);
  }

  settle(peer: Peer): void {
    this.#found.resolve(peer);
  }

  fail(error: unknown): void {
    this.#found.reject(error);
  }
}
