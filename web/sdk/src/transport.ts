// SPDX-License-Identifier: Apache-2.0

import type { Interceptor, Transport } from "@connectrpc/connect";
import { createTransport } from "@connectrpc/connect/protocol-grpc-web";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { createWebSocketClient } from "./websocket.js";

/** The largest message that is sent or accepted. */
const maxMessageBytes = 4 * 1024 * 1024;

/** Options of {@link createMeshTransport}. */
export interface MeshTransportOptions {
  /** Where the gateway is, for example `https://gate.example.org`. */
  baseUrl: string | URL;
  /** A token that does not change. Give this or `credentials`. */
  token?: string;
  /** Called before each call; returns the token to use, or an empty string for none. */
  credentials?: () => string | Promise<string>;
  /** Used in place of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
  /** Used in place of the global `WebSocket`. */
  webSocket?: (url: string, protocol: string) => WebSocket;
}

/**
 * A transport for clients of Connect that knows all four kinds of calls:
 * unary calls and server streams go over fetch, and what fetch cannot do, the
 * streams of a client, over one WebSocket each. Both speak gRPC-Web.
 */
export function createMeshTransport(options: MeshTransportOptions): Transport {
  const baseUrl = String(options.baseUrl).replace(/\/+$/, "");
  const interceptors = [authorize(options.credentials ?? (() => options.token ?? ""))];
  const overFetch = createGrpcWebTransport({
    baseUrl,
    interceptors,
    ...(options.fetch && { fetch: options.fetch }),
  });
  const overWebSocket = createTransport({
    baseUrl,
    interceptors,
    httpClient: createWebSocketClient(options),
    useBinaryFormat: true,
    acceptCompression: [],
    sendCompression: null,
    compressMinBytes: 0,
    readMaxBytes: maxMessageBytes,
    writeMaxBytes: maxMessageBytes,
  });
  return {
    unary: overFetch.unary,
    stream(method, signal, timeoutMs, header, input, contextValues) {
      const transport = method.methodKind === "server_streaming" ? overFetch : overWebSocket;
      return transport.stream(method, signal, timeoutMs, header, input, contextValues);
    },
  };
}

function authorize(credentials: () => string | Promise<string>): Interceptor {
  return (next) => async (request) => {
    const token = await credentials();
    if (token !== "") {
      request.header.set("authorization", `Bearer ${token}`);
    }
    return next(request);
  };
}
