// SPDX-License-Identifier: Apache-2.0

import { deferred } from "./async.js";
import { toBytes } from "./bytes.js";
import { type ControlMessage, parseControl } from "./control.js";
import { abortError, MeshgateError } from "./error.js";
import type { Connection, Path } from "./types.js";

/** The largest message we send: what every browser takes without interleaving trouble (RFC 8831, 6.6). */
export const maxMessageBytes = 16 * 1024;
/** Above this many bytes in the browser's own queue a writer waits, */
const highWaterBytes = 1024 * 1024;
/** and goes on below this many. */
const lowWaterBytes = 256 * 1024;
/** How long the other side may take to close a channel that is done. */
const closeTimeoutMs = 10_000;

/** What a channel needs of the peer connection it belongs to. */
export interface ChannelHost {
  /** How packets travel to the node now. */
  path(): Promise<Path>;
  /** Called once, when the channel is gone. */
  release(channel: Channel): void;
}

/**
 * A data channel as a pair of WHATWG streams: what TCP and UDP channels have in
 * common, which is their life. It is opened by the other side's `open`, closed
 * by {@link close}, and broken by {@link fail}.
 */
export abstract class Channel implements Connection {
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  readonly writable: WritableStream<Uint8Array>;
  /** Resolves when the service is connected and the channel can be used; rejects when that fails. */
  readonly opened: Promise<void>;
  readonly closed: Promise<void>;

  protected readonly dc: RTCDataChannel;
  readonly #host: ChannelHost;
  readonly #signal: AbortSignal | undefined;
  readonly #opened = deferred<void>();
  readonly #closed = deferred<void>();
  readonly #reader: Held<ReadableStreamDefaultController<Uint8Array<ArrayBuffer>>> = {};
  readonly #writer: Held<WritableStreamDefaultController> = {};
  #state: "live" | "closing" | "ended" = "live";
  #failure: MeshgateError | undefined;
  /** The other side has said that the service is connected. */
  #accepted = false;
  /** What arrived and was not yet asked for. */
  #inbox: Uint8Array<ArrayBuffer>[] = [];
  #inboxBytes = 0;
  /** The application waits for a chunk. */
  #wanted = false;
  /** The application has cancelled reading. */
  #discarding = false;
  /** Nothing more will arrive. */
  #endOfData = false;
  /** The application has closed writing. */
  #doneWriting = false;
  #endTimer: ReturnType<typeof setTimeout> | undefined;
  #wakeWriter: (() => void) | undefined;

  constructor(dc: RTCDataChannel, host: ChannelHost, signal: AbortSignal | undefined) {
    this.dc = dc;
    this.#host = host;
    this.#signal = signal;
    this.opened = this.#opened.promise;
    this.closed = this.#closed.promise;
    this.readable = new ReadableStream(
      {
        start: (controller) => {
          this.#reader.value = controller;
        },
        pull: () => this.#pull(),
        cancel: () => this.#cancelReading(),
      },
      // Nothing is read ahead: what the application has not asked for stays with the channel, which counts it.
      { highWaterMark: 0 },
    );
    this.writable = new WritableStream({
      start: (controller) => {
        this.#writer.value = controller;
      },
      write: (chunk) => this.#write(chunk),
      close: () => this.#closeWriting(),
      abort: (reason) => this.reset(new MeshgateError("canceled", "writing was aborted", { cause: reason })),
    });
    this.#listen();
  }

  /** The id of the SCTP stream; null while the browser has not chosen one. */
  get streamId(): number | null {
    return this.dc.id;
  }

  path(): Promise<Path> {
    return this.#host.path();
  }

  /** Ends the connection in order; see {@link Connection.close}. */
  async close(): Promise<void> {
    if (this.#state === "live") {
      this.#state = "closing";
      const error = new MeshgateError("canceled", "the connection was closed by this page");
      this.#opened.reject(error);
      this.#errorStreams(error);
      this.closeGently();
    }
    await this.closed.catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Breaks the connection: its streams and promises reject. Harmless once it has ended. */
  fail(error: MeshgateError): void {
    // After close() nobody is left to be told.
    this.#end(this.#state === "closing" ? undefined : error);
  }

  /** Breaks the connection and tells the other side. */
  reset(error: MeshgateError): void {
    this.send({ type: "reset", code: error.code, message: error.message });
    this.fail(error);
  }

  /** To be called when the other side says that the service is connected. */
  protected accept(): void {
    this.#accepted = true;
    this.#settleOpened();
  }

  /** Browsers pass messages on before the channel may be sent on. */
  #settleOpened(): void {
    if (this.#accepted && this.dc.readyState === "open") {
      this.#opened.resolve();
    }
  }

  /** Takes a control message that came over this channel or, for UDP, over the control channel. */
  abstract control(message: ControlMessage): void;
  /** Takes data that arrived while nobody has closed the connection. */
  protected abstract receive(data: Uint8Array<ArrayBuffer>): void;
  /** The application took that many bytes of what was given to {@link deliver}. */
  protected abstract consumed(bytes: number): void;
  /** Sends data; waits for {@link sendable} before each message. */
  protected abstract sendData(data: Uint8Array<ArrayBuffer>): Promise<void>;
  /** Tells the other side that nothing more will be written. */
  protected abstract endWriting(): void;
  /** Tells the other side that the connection is of no more use here. */
  protected abstract closeGently(): void;
  /** Whether, if the other side closes the data channel now, the connection ends in order. */
  protected abstract isComplete(): boolean;

  /** The other side closed the data channel although the connection was not complete. */
  protected closedEarly(error: MeshgateError): void {
    this.fail(error);
  }

  /** Whether {@link close} was called. */
  protected get closing(): boolean {
    return this.#state === "closing";
  }

  /** How much waits for the application: chunks and bytes. */
  protected get backlog(): { readonly chunks: number; readonly bytes: number } {
    return { chunks: this.#inbox.length, bytes: this.#inboxBytes };
  }

  /** Hands a chunk to the application as soon as it asks for it. */
  protected deliver(chunk: Uint8Array<ArrayBuffer>): void {
    this.#inbox.push(chunk);
    this.#inboxBytes += chunk.byteLength;
    this.#flush();
  }

  /** Nothing more will arrive; what did can still be read. */
  protected endReading(): void {
    this.#endOfData = true;
    this.#flush();
  }

  /** Sends a control message, if the channel still can. */
  protected send(message: ControlMessage): void {
    if (this.dc.readyState === "open") {
      quietly(() => this.dc.send(JSON.stringify(message)));
    }
  }

  /** Whether a message may be sent now. */
  protected canSend(): boolean {
    return this.dc.bufferedAmount < highWaterBytes;
  }

  /** Waits until {@link canSend}; rejects when the channel ends before. */
  protected async sendable(): Promise<void> {
    while (this.#state === "live" && !this.canSend()) {
      await new Promise<void>((resolve) => {
        this.#wakeWriter = resolve;
      });
    }
    if (this.#state !== "live") {
      throw this.#failure ?? new MeshgateError("canceled", "the connection was closed by this page");
    }
  }

  /** Looks again whether the writer may go on. */
  protected wakeWriter(): void {
    this.#wakeWriter?.();
  }

  /** Ends the channel in order. */
  protected finish(): void {
    this.#end(undefined);
  }

  /** Ends the channel in order if the other side does not do so in time. */
  protected expectClose(): void {
    this.endAfter(closeTimeoutMs, () => this.finish());
  }

  /** Ends the channel by an action after some time, unless something else ends it before. */
  protected endAfter(ms: number, action: () => void): void {
    this.#endTimer ??= setTimeout(action, ms);
  }

  /** Sets all handlers at once: messages may come before the channel says that it is open. */
  #listen(): void {
    const { dc } = this;
    dc.binaryType = "arraybuffer";
    dc.bufferedAmountLowThreshold = lowWaterBytes;
    dc.onopen = () => this.#settleOpened();
    dc.onbufferedamountlow = () => this.wakeWriter();
    dc.onmessage = ({ data }: MessageEvent<unknown>) => this.#receive(data);
    dc.onclose = () => this.#closedByPeer();
    dc.onerror = (event) => this.#closedByPeer("error" in event ? event.error : undefined);
    this.#signal?.addEventListener("abort", this.#abort, { once: true });
  }

  readonly #abort = (): void => {
    if (this.#signal !== undefined) {
      this.reset(abortError(this.#signal));
    }
  };

  #receive(data: unknown): void {
    if (this.#state === "ended") {
      return;
    }
    if (data instanceof ArrayBuffer) {
      if (!this.closing) {
        this.receive(new Uint8Array(data));
      }
      return;
    }
    const message = typeof data === "string" ? parseControl(data) : undefined;
    if (message === undefined) {
      this.reset(new MeshgateError("internal", "the node sent a message that is not part of the protocol"));
      return;
    }
    this.control(message);
  }

  #closedByPeer(cause?: unknown): void {
    if (this.isComplete()) {
      this.finish();
    } else {
      this.closedEarly(
        new MeshgateError("unavailable", "the node closed the connection before its end", { cause }),
      );
    }
  }

  #pull(): void {
    this.#wanted = true;
    this.#flush();
  }

  /** What arrives from now on is thrown away, but counts as read: the other direction may go on. */
  #cancelReading(): void {
    this.#discarding = true;
    this.#flush();
    this.#closeIfUnused();
  }

  #closeWriting(): void {
    this.#doneWriting = true;
    this.endWriting();
    this.#closeIfUnused();
  }

  /** When the application neither reads nor writes any more, nobody else would end the connection. */
  #closeIfUnused(): void {
    if (this.#discarding && this.#doneWriting && this.#state === "live") {
      void this.close();
    }
  }

  #flush(): void {
    while ((this.#wanted || this.#discarding) && this.#inbox.length > 0) {
      const chunk = this.#inbox.shift();
      if (chunk !== undefined) {
        this.#inboxBytes -= chunk.byteLength;
        this.consumed(chunk.byteLength);
        if (!this.#discarding) {
          this.#wanted = false;
          this.#reader.value?.enqueue(chunk);
        }
      }
    }
    if (this.#endOfData && this.#inbox.length === 0) {
      quietly(() => this.#reader.value?.close());
    }
  }

  async #write(chunk: unknown): Promise<void> {
    try {
      await this.sendData(toBytes(chunk));
    } catch (reason) {
      const error = MeshgateError.from(reason);
      this.reset(error);
      throw error;
    }
  }

  #errorStreams(error: MeshgateError): void {
    this.#inbox = [];
    this.#inboxBytes = 0;
    quietly(() => this.#reader.value?.error(error));
    quietly(() => this.#writer.value?.error(error));
    this.#wakeWriter?.();
  }

  #end(error: MeshgateError | undefined): void {
    if (this.#state === "ended") {
      return;
    }
    this.#state = "ended";
    this.#failure = error;
    clearTimeout(this.#endTimer);
    this.#signal?.removeEventListener("abort", this.#abort);
    if (error === undefined) {
      this.endReading();
      quietly(() => this.#writer.value?.error(new MeshgateError("canceled", "the connection has ended")));
      this.wakeWriter();
      this.#closed.resolve();
    } else {
      this.#opened.reject(error);
      this.#errorStreams(error);
      this.#closed.reject(error);
    }
    this.dc.close();
    this.#host.release(this);
  }
}

/** A place for what the constructor of a stream hands out. */
interface Held<T> {
  value?: T;
}

/** Runs an action that throws only when what it is about has already ended. */
function quietly(action: () => void): void {
  try {
    action();
  } catch {
    // It has ended, which is all that was wanted.
  }
}
