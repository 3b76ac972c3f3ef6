// SPDX-License-Identifier: Apache-2.0

import { once } from "node:events";
import { createServer, type RequestListener, type Server } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import type { ByteStream, Open } from "../http/pool.js";
import { AsyncQueue } from "../queue.js";

/** A byte stream whose other end is in the hands of a test. */
export interface Wires {
  readonly stream: ByteStream;
  /** What the client sent. */
  readonly sent: AsyncQueue<Uint8Array>;
  /** Sends to the client, cut as given. */
  push(...parts: (string | Uint8Array)[]): void;
  /** Ends the direction to the client. */
  end(): void;
  /** Breaks both directions. */
  fail(error: Error): void;
  /** Whether the client has closed or broken the stream. */
  closed: boolean;
}

/** Makes {@link Wires}. */
export function wires(): Wires {
  const incoming = new AsyncQueue<Uint8Array<ArrayBuffer>>();
  const sent = new AsyncQueue<Uint8Array>();
  let writer: WritableStreamDefaultController | undefined;
  const result: Wires = {
    sent,
    closed: false,
    push: (...parts) => {
      for (const part of parts) {
        incoming.push(
          typeof part === "string" ? Uint8Array.from(Buffer.from(part, "latin1")) : Uint8Array.from(part),
        );
      }
    },
    end: () => incoming.end(),
    fail: (error) => {
      incoming.fail(error);
      writer?.error(error);
    },
    stream: {
      readable: new ReadableStream(
        {
          async pull(controller) {
            const bytes = await incoming.next();
            if (bytes === undefined) {
              controller.close();
            } else {
              controller.enqueue(bytes);
            }
          },
        },
        { highWaterMark: 0 },
      ),
      writable: new WritableStream({
        start(controller) {
          writer = controller;
        },
        write: (bytes) => sent.push(bytes),
        abort: (reason) => {
          result.closed = true;
          incoming.fail(reason);
          sent.end();
        },
      }),
      close: async () => {
        result.closed = true;
        sent.end();
      },
    },
  };
  return result;
}

/** A real HTTP server, and how to open byte streams to it. */
export class TestServer implements AsyncDisposable {
  /** The sockets of all connections, in order. */
  readonly sockets: Socket[] = [];
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
    server.on("connection", (socket) => this.sockets.push(socket));
  }

  static async start(listener: RequestListener): Promise<TestServer> {
    const server = new TestServer(createServer(listener));
    server.#server.listen(0, "127.0.0.1");
    await once(server.#server, "listening");
    return server;
  }

  /** Opens a stream to the server, whatever the target. */
  readonly open: Open = async () => {
    const { port } = this.#server.address() as AddressInfo;
    const socket = connect({ port, host: "127.0.0.1" });
    await once(socket, "connect");
    return socketStream(socket);
  };

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, "close");
  }
}

function socketStream(socket: Socket): ByteStream {
  socket.on("error", () => {});
  const iterator = socket[Symbol.asyncIterator]();
  return {
    readable: new ReadableStream(
      {
        async pull(controller) {
          const { done, value } = await iterator.next();
          if (done) {
            controller.close();
          } else {
            controller.enqueue(Uint8Array.from(value));
          }
        },
      },
      { highWaterMark: 0 },
    ),
    writable: new WritableStream({
      write: (bytes) =>
        new Promise<void>((resolve, reject) => {
          socket.write(bytes, (error) => (error ? reject(error) : resolve()));
        }),
      abort: (reason) => void socket.destroy(reason instanceof Error ? reason : undefined),
    }),
    close: async () => void socket.end(),
  };
}
