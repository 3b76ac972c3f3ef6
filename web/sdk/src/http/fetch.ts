// SPDX-License-Identifier: Apache-2.0

import { abortError, MeshgateError } from "../error.js";
import type { MeshRequestInit } from "../types.js";
import { exchange } from "./exchange.js";
import { type Open, Pool, type Target } from "./pool.js";
import { createRequest, type MeshRequest, redirected } from "./request.js";

/** How many redirects are followed, as in browsers. */
const maxRedirects = 20;
/** Methods that do the same when they are done twice (RFC 9110, 9.2.2). */
const idempotentMethods = ["DELETE", "GET", "HEAD", "OPTIONS", "PUT"];

/** An HTTP client over byte streams. */
export class HttpClient {
  readonly #pool: Pool;

  constructor(open: Open) {
    this.#pool = new Pool(open);
  }

  /** See {@link MeshClient.fetch}. */
  async fetch(input: string | URL | Request, init: MeshRequestInit = {}): Promise<Response> {
    try {
      let request = await createRequest(input, init);
      for (let count = 0; count <= maxRedirects; count++) {
        if (request.signal?.aborted) {
          throw abortError(request.signal);
        }
        const response = await this.#send(request, count > 0);
        const location = response.headers.get("location");
        if (
          ![301, 302, 303, 307, 308].includes(response.status) ||
          location === null ||
          request.redirect === "manual"
        ) {
          return response;
        }
        await response.body?.cancel();
        if (request.redirect === "error") {
          throw new MeshgateError(
            "failed_precondition",
            `${request.url.href} redirects to ${location}, which was not wanted`,
          );
        }
        request = redirected(request, response.status, location);
      }
      throw new MeshgateError(
        "failed_precondition",
        `${request.url.href} redirects again after ${maxRedirects} redirects`,
      );
    } catch (reason) {
      throw MeshgateError.from(reason);
    }
  }

  /** Closes the connections that carry no request. */
  closeIdle(): void {
    this.#pool.closeIdle();
  }

  async #send(request: MeshRequest, isRedirected: boolean): Promise<Response> {
    const where = target(request);
    const mayRepeat = idempotentMethods.includes(request.method) && request.body?.replayable !== false;
    const signal = request.signal ?? new AbortController().signal;
    for (;;) {
      // A kept connection may be dead already. That is found out only by sending, so what must not be sent twice
      // gets a fresh one.
      const connection = await this.#pool.get(where, mayRepeat, signal);
      const response = await exchange(connection, request, isRedirected);
      if (response !== undefined) {
        return response;
      }
    }
  }
}

/** Where a request goes: the host of the URL is a node, or with a given node what that node connects to. */
function target({ url, node }: MeshRequest): Target {
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port === "" ? 80 : Number(url.port);
  if (node !== undefined) {
    return { node, host: host === node.toLowerCase() ? "" : host, port };
  }
  if (host.includes(":") || /^\d+\.\d+\.\d+\.\d+$/.test(host)) {
    throw new MeshgateError(
      "invalid_argument",
      `${host} is an address: say with the option node which node is to connect to it, or use the id of a node as host`,
    );
  }
  return { node: host, host: "", port };
}
