// SPDX-License-Identifier: Apache-2.0

import { MeshgateError } from "../error.js";
import type { Head } from "./head.js";
import { malformed } from "./malformed.js";

type Body = ReadableStream<Uint8Array<ArrayBuffer>> | Uint8Array<ArrayBuffer> | null;

/** What only the network layer of a browser can set on a Response otherwise. */
interface Origin {
  readonly url: string;
  readonly redirected: boolean;
}

/**
 * A Response with the URL it came from and with all of its headers, also
 * `set-cookie`, which the constructor of Response would leave out.
 */
export function createResponse(body: Body, head: Head, origin: Origin): Response {
  const { status, statusText, headers } = head;
  const response = new Response(body, { status, statusText, headers });
  return Object.defineProperties(response, {
    url: { value: origin.url },
    redirected: { value: origin.redirected },
    headers: { value: headers },
    clone: {
      value: () => {
        const copy: Response = Response.prototype.clone.call(response);
        return createResponse(copy.body, { ...head, headers: new Headers(headers) }, origin);
      },
    },
  });
}

/** Undoes `content-encoding: gzip`. */
export function gunzip(
  body: ReadableStream<Uint8Array<ArrayBuffer>>,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  const reader = body.pipeThrough(new DecompressionStream("gzip")).getReader();
  return new ReadableStream(
    {
      async pull(controller) {
        try {
          const { done, value } = await reader.read();
          if (done) {
            controller.close();
          } else {
            controller.enqueue(value);
          }
        } catch (error) {
          throw error instanceof MeshgateError ? error : malformed("its body is not valid gzip");
        }
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 },
  );
}
