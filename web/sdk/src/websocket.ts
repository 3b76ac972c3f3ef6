// SPDX-License-Identifier: Apache-2.0

import { Code, ConnectError } from "@connectrpc/connect";
import type { UniversalClientFn } from "@connectrpc/connect/protocol";
import { trailerFlag, trailerParse } from "@connectrpc/connect/protocol-grpc-web";
import { deferred } from "./async.js";
import { concat } from "./bytes.js";
import type { MeshgateError } from "./error.js";
import { AsyncQueue } from "./queue.js";

/** The WebSocket subprotocol that carries one gRPC-Web call. */
const subprotocol = "grpc-websockets";
/** First byte of a message of ours: a gRPC frame follows. */
const frameFollows = 0x00;
/** The one byte of our last message: nothing more is sent. */
const sendingEnds = 0x01;
/** A gRPC frame begins with flags and a length of 32 bits. */
const framePrefixBytes = 5;
/** The largest block of response headers that is accepted. */
const maxHeaderBytes = 64 * 1024;
/** How much may wait to be read. A classic WebSocket cannot be told to stop. */
const maxInboxBytes = 16 * 1024 * 1024;
/** How much may wait to be sent before the sender is made to wait, */
const maxBufferedBytes = 1024 * 1024;
/** and how often it then looks again: WebSocket has no event for it. */
const bufferedPollMs = 20;

/** The cause of an error by which no call was even begun. */
const noSocket = Symbol("the WebSocket never opened");

/** Whether a call failed because its WebSocket was never open. Browsers do not tell why. */
export function neverOpened({ cause }: MeshgateError): boolean {
  return cause instanceof ConnectError && cause.cause === noSocket;
}

/** Options of {@link createWebSocketClient}. */
export interface WebSocketClientOptions {
  /** Used in place of the global `WebSocket`. */
  webSocket?: (url: string, protocol: string) => WebSocket;
}

/**
 * The HTTP client for the gRPC-Web transport of Connect that makes each call
 * over a WebSocket of its own, so that both sides can stream at the same time.
 *
 * The protocol is `grpc-websockets`: the client sends its headers as text in a
 * binary message, then each frame behind a zero byte, then a one. The server
 * answers with a byte stream, cut anywhere: a header frame, data, a trailer
 * frame; where there is but one such frame, it is both.
 */
export function createWebSocketClient(options: WebSocketClientOptions = {}): UniversalClientFn {
  const open = options.webSocket ?? ((url, protocol) => new WebSocket(url, protocol));
  return async (request) => {
    request.signal?.throwIfAborted();
    const url = new URL(request.url, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = open(url.href, subprotocol);
    const inbox = new Inbox(socket, url, request.signal);
    try {
      await inbox.opened.promise;
      socket.send(encodeHeaders(request.header));
      void sendBody(socket, request.body, inbox);
      const { header, rest } = await readHeaders(inbox);
      return { status: 200, header, trailer: new Headers(), body: readBody(socket, inbox, rest) };
    } catch (error) {
      socket.close();
      throw error;
    }
  };
}

/** What arrived on a socket and was not yet read. Ends or fails as the socket does. */
class Inbox extends AsyncQueue<Uint8Array> {
  /** Settles when the socket is open, or has failed. */
  readonly opened = deferred<void>();
  readonly #socket: WebSocket;
  #isOpen = false;
  #bytes = 0;

  constructor(socket: WebSocket, url: URL, signal: AbortSignal | undefined) {
    super();
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.#isOpen = true;
      this.opened.resolve();
    };
    socket.onmessage = ({ data }: MessageEvent<unknown>) => this.#receive(data);
    const abort = () => this.fail(signal?.reason);
    signal?.addEventListener("abort", abort, { once: true });
    socket.onclose = (event) => {
      signal?.removeEventListener("abort", abort);
      this.#closed(event, url);
    };
  }

  override fail(error: unknown): void {
    super.fail(error);
    this.opened.reject(error);
    this.#socket.close();
  }

  override async next(): Promise<Uint8Array | undefined> {
    const bytes = await super.next();
    this.#bytes -= bytes?.byteLength ?? 0;
    return bytes;
  }

  #receive(data: unknown): void {
    if (!(data instanceof ArrayBuffer)) {
      this.fail(new ConnectError("the gateway sent text in a binary protocol", Code.Internal));
      return;
    }
    this.#bytes += data.byteLength;
    if (this.#bytes > maxInboxBytes) {
      this.fail(new ConnectError("the gateway sends faster than this page reads", Code.ResourceExhausted));
      return;
    }
    this.push(new Uint8Array(data));
  }

  #closed({ code, reason }: CloseEvent, url: URL): void {
    if (!this.#isOpen) {
      const text =
        `no WebSocket to ${url.origin}: check that the gateway is up, that it allows this page's origin ` +
        "(--cors.origins), and that proxies on the way pass WebSockets";
      this.fail(new ConnectError(text, Code.Unavailable, undefined, undefined, noSocket));
    } else if (code === 1000) {
      this.end();
    } else {
      const text = `the connection to the gateway was lost (WebSocket close code ${code}${reason && `: ${reason}`})`;
      this.fail(new ConnectError(text, Code.Unavailable));
    }
  }
}

function encodeHeaders(header: Headers): Uint8Array<ArrayBuffer> {
  let text = "";
  header.forEach((value, name) => {
    text += `${name}: ${value}\r\n`;
  });
  return new TextEncoder().encode(text);
}

/** Sends frame after frame. Each chunk of the body is one frame: the transport makes them so. */
async function sendBody(
  socket: WebSocket,
  body: AsyncIterable<Uint8Array> | undefined,
  inbox: Inbox,
): Promise<void> {
  try {
    for await (const frame of body ?? []) {
      while (socket.bufferedAmount > maxBufferedBytes) {
        await new Promise((resolve) => setTimeout(resolve, bufferedPollMs));
      }
      if (socket.readyState !== socket.OPEN) {
        return;
      }
      const message = new Uint8Array(1 + frame.byteLength);
      message[0] = frameFollows;
      message.set(frame, 1);
      socket.send(message);
    }
    socket.send(Uint8Array.of(sendingEnds));
  } catch (error) {
    inbox.fail(error);
  }
}

/** Reads the header frame; `rest` are bytes that came behind it. */
async function readHeaders(inbox: Inbox): Promise<{ header: Headers; rest: Uint8Array }> {
  let bytes = new Uint8Array(0);
  let frameBytes = framePrefixBytes;
  for (;;) {
    if (bytes.byteLength >= framePrefixBytes) {
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      frameBytes = framePrefixBytes + view.getUint32(1);
      if (view.getUint8(0) !== trailerFlag || frameBytes > maxHeaderBytes) {
        throw new ConnectError("the gateway's answer does not begin with headers", Code.Internal);
      }
      if (bytes.byteLength >= frameBytes) {
        return {
          header: trailerParse(bytes.subarray(framePrefixBytes, frameBytes)),
          rest: bytes.subarray(frameBytes),
        };
      }
    }
    const more = await inbox.next();
    if (more === undefined) {
      throw new ConnectError("the gateway closed the call before it answered", Code.Unavailable);
    }
    bytes = concat(bytes, more);
  }
}

async function* readBody(socket: WebSocket, inbox: Inbox, rest: Uint8Array): AsyncGenerator<Uint8Array> {
  try {
    if (rest.byteLength > 0) {
      yield rest;
    }
    yield* inbox;
  } finally {
    socket.close();
  }
}
