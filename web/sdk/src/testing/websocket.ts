// SPDX-License-Identifier: Apache-2.0

import { setImmediate } from "node:timers/promises";
import type { ConnectRouter } from "@connectrpc/connect";
import { createConnectRouter } from "@connectrpc/connect";
import type { UniversalServerResponse } from "@connectrpc/connect/protocol";
import { AsyncQueue } from "../queue.js";

/** How a {@link FakeWebSocketServer} misbehaves. */
export interface Faults {
  /** Refuse the handshake. */
  refuse?: boolean;
  /** Cut what is sent into parts of this many bytes. */
  cut?: number;
  /** Send this in place of an answer. */
  answer?: (string | Uint8Array<ArrayBuffer>)[];
  /** Close with this code after the answer; 1000 otherwise. */
  closeCode?: number;
  /** Lose the connection after this many bytes of the answer. */
  loseAfter?: number;
}

/** The server side of grpc-websockets, in front of handlers of Connect. */
export class FakeWebSocketServer {
  /** The sockets that were opened. */
  readonly sockets: FakeWebSocket[] = [];
  /** The header message of each call. */
  readonly headers: string[] = [];
  readonly #router: ConnectRouter;

  constructor(
    routes: (router: ConnectRouter) => void,
    readonly faults: Faults = {},
  ) {
    this.#router = createConnectRouter({ grpcWeb: true, connect: false, grpc: false });
    routes(this.#router);
  }

  /** The constructor to give to a client. */
  readonly open = (url: string, protocol: string): WebSocket => {
    const socket = new FakeWebSocket(url, protocol);
    this.sockets.push(socket);
    void this.#serve(socket);
    return socket as unknown as WebSocket;
  };

  async #serve(socket: FakeWebSocket): Promise<void> {
    await setImmediate();
    if (this.faults.refuse) {
      socket.lose(1006);
      return;
    }
    socket.accept();
    const header = await socket.received.next();
    if (header === undefined) {
      return;
    }
    this.headers.push(Buffer.from(header).toString("latin1"));
    if (this.faults.answer !== undefined) {
      for (const message of this.faults.answer) {
        await socket.deliver(message);
      }
    } else {
      await this.#call(socket, this.headers.at(-1) ?? "");
    }
    socket.lose(this.faults.closeCode ?? 1000);
  }

  async #call(socket: FakeWebSocket, header: string): Promise<void> {
    const { pathname } = new URL(socket.url);
    const handler = this.#router.handlers.find(({ requestPath }) => requestPath === pathname);
    if (handler === undefined) {
      throw new Error(`no handler for ${pathname}`);
    }
    const fields = header
      .trimEnd()
      .split("\r\n")
      .map((line): [string, string] => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon), line.slice(colon + 1)];
      });
    const response = await handler({
      httpVersion: "2",
      url: socket.url,
      method: "POST",
      header: new Headers(fields),
      body: frames(socket.received),
      signal: socket.gone.signal,
    });
    await this.#answer(socket, response);
  }

  async #answer(socket: FakeWebSocket, response: UniversalServerResponse): Promise<void> {
    let left = this.faults.loseAfter ?? Number.POSITIVE_INFINITY;
    for await (const bytes of answerBytes(response)) {
      const size = this.faults.cut ?? bytes.byteLength;
      for (let offset = 0; offset < bytes.byteLength; offset += size) {
        const part = bytes.slice(offset, offset + Math.min(size, left));
        await socket.deliver(part);
        left -= part.byteLength;
        if (left <= 0) {
          socket.lose(1006);
          return;
        }
      }
    }
  }
}

/** What a server sends: a header frame, then the body, which already has the trailer frame. */
async function* answerBytes({ header, body }: UniversalServerResponse): AsyncGenerator<Uint8Array> {
  const text = Buffer.from(
    [...(header ?? new Headers())].map(([name, value]) => `${name}: ${value}\r\n`).join(""),
  );
  const frame = Buffer.alloc(5 + text.byteLength);
  frame[0] = 0x80;
  frame.writeUInt32BE(text.byteLength, 1);
  text.copy(frame, 5);
  yield frame.subarray(0, 5);
  yield frame.subarray(5);
  yield* body ?? [];
}

/** The frames that a client sends, up to its last message. */
async function* frames(messages: AsyncQueue<Uint8Array>): AsyncGenerator<Uint8Array> {
  for await (const message of messages) {
    if (message[0] === 1 && message.byteLength === 1) {
      return;
    }
    if (message[0] !== 0) {
      throw new Error("a message does not begin with zero");
    }
    yield message.subarray(1);
  }
}

/** The client's end of a WebSocket. */
class FakeWebSocket {
  readonly OPEN = 1;
  binaryType = "blob";
  bufferedAmount = 0;
  readyState = 0;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  readonly received = new AsyncQueue<Uint8Array>();
  /** Aborted when the socket is gone. */
  readonly gone = new AbortController();

  constructor(
    readonly url: string,
    readonly protocol: string,
  ) {}

  send(data: Uint8Array<ArrayBuffer>): void {
    this.received.push(data.slice());
  }

  close(): void {
    this.lose(1000);
  }

  accept(): void {
    if (this.readyState === 0) {
      this.readyState = 1;
      this.onopen?.(new Event("open"));
    }
  }

  async deliver(message: string | Uint8Array): Promise<void> {
    await setImmediate();
    if (this.readyState === 1) {
      const data = typeof message === "string" ? message : Uint8Array.from(message).buffer;
      this.onmessage?.(new MessageEvent("message", { data }));
    }
  }

  lose(code: number): void {
    if (this.readyState !== 3) {
      this.readyState = 3;
      this.received.end();
      this.gone.abort();
      queueMicrotask(() => this.onclose?.({ code, reason: "" }));
    }
  }
}
