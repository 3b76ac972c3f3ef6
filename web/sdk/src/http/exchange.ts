// SPDX-License-Identifier: Apache-2.0

import { abortError, MeshgateError } from "../error.js";
import { bodyStream } from "./body.js";
import { framing, type Head, isNullBodyStatus, keepsAlive, readHead } from "./head.js";
import type { HttpConnection } from "./pool.js";
import { encodeChunk, encodeHead, encodeLastChunk, type MeshRequest } from "./request.js";
import { createResponse, gunzip } from "./response.js";

/**
 * Sends a request over a connection and reads the response up to its body.
 * Undefined when the connection had carried requests before and turned out to
 * be dead, so that the request may be sent over another.
 */
export async function exchange(
  connection: HttpConnection,
  request: MeshRequest,
  isRedirected: boolean,
): Promise<Response | undefined> {
  const call = new Call(connection, request);
  const head = await call.head();
  return head && call.response(head, isRedirected);
}

/** One request and its response on a connection. */
class Call {
  readonly #connection: HttpConnection;
  readonly #request: MeshRequest;
  readonly #receivedBefore: number;
  #sent = false;

  constructor(connection: HttpConnection, request: MeshRequest) {
    this.#connection = connection;
    this.#request = request;
    this.#receivedBefore = connection.reader.received;
    request.signal?.addEventListener("abort", this.#abort);
    if (request.signal?.aborted) {
      this.#abort();
    }
    // A failure to send breaks the connection, which is where it shows: in reading.
    this.#send().catch((error: unknown) => connection.abort(MeshgateError.from(error)));
  }

  /** Reads up to the body; undefined when the connection was dead from the beginning. */
  async head(): Promise<Head | undefined> {
    const { reader, reused } = this.#connection;
    let error: MeshgateError;
    try {
      const head = await readHead(reader);
      if (head !== undefined) {
        return head;
      }
      error = new MeshgateError("unavailable", "the service closed the connection without an answer");
    } catch (reason) {
      error = MeshgateError.from(reason);
    }
    this.#broken(error);
    if (reused && reader.received === this.#receivedBefore && !this.#request.signal?.aborted) {
      return undefined;
    }
    throw error;
  }

  /** Makes the response, whose body goes on using the connection. */
  response(head: Head, isRedirected: boolean): Response {
    const { method, url, headers } = this.#request;
    const origin = { url: url.href, redirected: isRedirected };
    try {
      const frame = framing(method, head);
      const mayKeep = keepsAlive(method, head) && frame.kind !== "close";
      if (frame.kind === "length" && frame.length === 0) {
        this.#complete(mayKeep);
        const hasNone = method === "HEAD" || isNullBodyStatus(head.status);
        return createResponse(hasNone ? null : new Uint8Array(0), head, origin);
      }
      const body = bodyStream(this.#connection.reader, frame, {
        onComplete: () => this.#complete(mayKeep),
        onBroken: (reason) => this.#broken(MeshgateError.from(reason)),
      });
      // Who asks for an encoding by name gets the body as it is.
      const isGzip = /^(x-)?gzip$/i.test(head.headers.get("content-encoding") ?? "");
      return createResponse(isGzip && !headers.has("accept-encoding") ? gunzip(body) : body, head, origin);
    } catch (reason) {
      const error = MeshgateError.from(reason);
      this.#broken(error);
      throw error;
    }
  }

  readonly #abort = (): void => {
    if (this.#request.signal) {
      this.#broken(abortError(this.#request.signal));
    }
  };

  async #send(): Promise<void> {
    const { writer } = this.#connection;
    const { body } = this.#request;
    await writer.write(encodeHead(this.#request));
    const source = body?.open()?.getReader();
    try {
      for (let part = await source?.read(); part !== undefined && !part.done; part = await source?.read()) {
        if (!(part.value instanceof Uint8Array)) {
          throw new MeshgateError("invalid_argument", "a body that is a stream must consist of Uint8Arrays");
        }
        if (part.value.byteLength > 0) {
          await writer.write(body?.length === undefined ? encodeChunk(part.value) : part.value);
        }
      }
      if (body !== undefined && body.length === undefined) {
        await writer.write(encodeLastChunk());
      }
      this.#sent = true;
    } catch (error) {
      source?.cancel(error).catch(() => {});
      throw error;
    }
  }

  #complete(mayKeep: boolean): void {
    this.#request.signal?.removeEventListener("abort", this.#abort);
    if (mayKeep && this.#sent) {
      this.#connection.keep();
    } else {
      this.#connection.close();
    }
  }

  #broken(error: MeshgateError): void {
    this.#request.signal?.removeEventListener("abort", this.#abort);
    this.#connection.abort(error);
  }
}
