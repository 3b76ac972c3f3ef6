// SPDX-License-Identifier: Apache-2.0

import { type Deferred, deferred, orAbort } from "../async.js";
import type { MeshgateError } from "../error.js";
import { ByteReader } from "./reader.js";

/** How many connections there may be to one service; further requests wait. */
const maxConnections = 16;
/** How long a connection without a request is kept. */
const idleMs = 30_000;

/** A byte stream to a service. */
export interface ByteStream {
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  readonly writable: WritableStream<Uint8Array>;
  close(): Promise<void>;
}

/** A service, as seen from a node. */
export interface Target {
  readonly node: string;
  readonly host: string;
  readonly port: number;
}

/** Opens a byte stream. */
export type Open = (target: Target, signal: AbortSignal) => Promise<ByteStream>;

/** A connection that carries one request at a time. */
export class HttpConnection {
  readonly reader: ByteReader;
  readonly writer: WritableStreamDefaultWriter<Uint8Array>;
  /** Whether it has carried a request before. */
  reused = false;
  readonly #stream: ByteStream;
  readonly #place: Place;
  #idleTimer: ReturnType<typeof setTimeout> | undefined;
  #done = false;

  constructor(stream: ByteStream, place: Place) {
    this.#stream = stream;
    this.#place = place;
    this.reader = new ByteReader(stream.readable);
    this.writer = stream.writable.getWriter();
    this.writer.closed.catch(() => {});
  }

  /** Keeps the connection for another request, unless bytes came that nobody asked for. */
  keep(): void {
    if (this.reader.hasRest) {
      this.close();
      return;
    }
    this.reused = true;
    this.#idleTimer = setTimeout(() => this.close(), idleMs);
    // Whatever happens before the next request, be it the end or data, makes it useless.
    this.reader.fill().then(
      () => this.#closeIfIdle(),
      () => this.#closeIfIdle(),
    );
    this.#place.addIdle(this);
  }

  /** Takes the connection out of its rest. */
  wake(): void {
    clearTimeout(this.#idleTimer);
    this.#idleTimer = undefined;
  }

  /** Ends the connection in order. */
  close(): void {
    this.#leave();
    void this.#stream.close();
  }

  /** Breaks the connection; what is being read or written rejects with the error. */
  abort(error: MeshgateError): void {
    this.#leave();
    this.writer.abort(error).catch(() => {});
  }

  #closeIfIdle(): void {
    if (this.#idleTimer !== undefined) {
      this.close();
    }
  }

  #leave(): void {
    this.wake();
    if (!this.#done) {
      this.#done = true;
      this.#place.remove(this);
    }
  }
}

/** The connections to one service. */
class Place {
  readonly #open: (signal: AbortSignal) => Promise<ByteStream>;
  readonly #idle: HttpConnection[] = [];
  readonly #queue: Deferred<void>[] = [];
  #count = 0;

  constructor(open: (signal: AbortSignal) => Promise<ByteStream>) {
    this.#open = open;
  }

  async get(mayReuse: boolean, signal: AbortSignal): Promise<HttpConnection> {
    for (;;) {
      const idle = mayReuse ? this.#idle.pop() : undefined;
      if (idle !== undefined) {
        idle.wake();
        return idle;
      }
      if (this.#count >= maxConnections) {
        // An idle one, if there is one, makes room for a fresh one.
        this.#idle.at(0)?.close();
      }
      if (this.#count < maxConnections) {
        return this.#connect(signal);
      }
      await this.#turn(signal);
    }
  }

  addIdle(connection: HttpConnection): void {
    this.#idle.push(connection);
    this.#next();
  }

  remove(connection: HttpConnection): void {
    const index = this.#idle.indexOf(connection);
    if (index >= 0) {
      this.#idle.splice(index, 1);
    }
    this.#count--;
    this.#next();
  }

  closeIdle(): void {
    for (const connection of [...this.#idle]) {
      connection.close();
    }
  }

  async #connect(signal: AbortSignal): Promise<HttpConnection> {
    this.#count++;
    try {
      return new HttpConnection(await this.#open(signal), this);
    } catch (error) {
      this.#count--;
      this.#next();
      throw error;
    }
  }

  /** Waits until a connection has become idle, or has ended. */
  async #turn(signal: AbortSignal): Promise<void> {
    const turn = deferred<void>();
    this.#queue.push(turn);
    try {
      await orAbort(turn.promise, signal);
    } catch (error) {
      const index = this.#queue.indexOf(turn);
      if (index >= 0) {
        this.#queue.splice(index, 1);
      } else {
        // It was our turn just now: it is the next one's.
        this.#next();
      }
      throw error;
    }
  }

  #next(): void {
    this.#queue.shift()?.resolve();
  }
}

/** Keeps connections for the next request to the same service, and bounds their number. */
export class Pool {
  readonly #open: Open;
  readonly #places = new Map<string, Place>();

  constructor(open: Open) {
    this.#open = open;
  }

  /** A connection to the service: one that is idle, or a fresh one. */
  get(target: Target, mayReuse: boolean, signal: AbortSignal): Promise<HttpConnection> {
    const key = JSON.stringify([target.node, target.host, target.port]);
    const place = this.#places.get(key) ?? new Place((openSignal) => this.#open(target, openSignal));
    this.#places.set(key, place);
    return place.get(mayReuse, signal);
  }

  /** Closes the connections that carry no request. */
  closeIdle(): void {
    for (const place of this.#places.values()) {
      place.closeIdle();
    }
  }
}
