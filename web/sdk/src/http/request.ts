// SPDX-License-Identifier: Apache-2.0

import { concat } from "../bytes.js";
import { MeshgateError } from "../error.js";
import type { MeshRequestInit } from "../types.js";
import { tokenPattern } from "./head.js";

/** How much of the body of a Request is read to find out its length. */
const maxPeekBytes = 1024 * 1024;
/** Methods that fetch writes in capitals, whatever the caller wrote. */
const knownMethods = ["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"];
/** Methods that would turn the connection into something else. */
const forbiddenMethods = ["CONNECT", "TRACE", "TRACK"];
/** Headers that frame the message or rule the connection, which is our part. */
const ownHeaders = [
  "connection",
  "content-length",
  "expect",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
];

/** A body that is to be sent. */
export interface RequestBody {
  /** The length; absent for a stream, which is sent chunked. */
  readonly length?: number;
  /** Opens the body; undefined the second time when it can be read but once. */
  open(): ReadableStream<Uint8Array> | undefined;
  /** Whether the body can be sent again. */
  readonly replayable: boolean;
}

/** A request, as it is sent. */
export interface MeshRequest {
  readonly method: string;
  readonly url: URL;
  readonly headers: Headers;
  readonly body: RequestBody | undefined;
  readonly redirect: RequestRedirect;
  readonly signal: AbortSignal | undefined;
  readonly node: string | undefined;
}

/** Reads the arguments of fetch. */
export async function createRequest(
  input: string | URL | Request,
  init: MeshRequestInit,
): Promise<MeshRequest> {
  const base = input instanceof Request ? input : undefined;
  const url = parseUrl(input instanceof Request ? input.url : String(input));
  const method = normalizeMethod(init.method ?? base?.method ?? "GET");
  const headers = new Headers(init.headers ?? base?.headers ?? {});
  const body = init.body === undefined && base ? await bodyOfRequest(base) : await bodyOf(init.body, headers);
  if (body !== undefined && (method === "GET" || method === "HEAD")) {
    throw invalid(`a ${method} request has no body: use another method`);
  }
  for (const name of ownHeaders) {
    if (headers.has(name)) {
      throw invalid(`the header ${name} is set by fetch itself: leave it out`);
    }
  }
  return {
    method,
    url,
    headers,
    body,
    redirect: init.redirect ?? base?.redirect ?? "follow",
    signal: init.signal === undefined ? base?.signal : (init.signal ?? undefined),
    node: init.node,
  };
}

/** Checks and reads a URL of the mesh. */
export function parseUrl(text: string, base?: URL): URL {
  let url: URL;
  try {
    url = new URL(text, base);
  } catch (cause) {
    throw new MeshgateError("invalid_argument", `${text} is not a URL such as http://web-1:8080/`, { cause });
  }
  if (url.protocol !== "http:") {
    throw invalid(
      `${url.protocol}// does not work inside the mesh, whose tunnels encrypt already: use http://`,
    );
  }
  if (url.username !== "" || url.password !== "") {
    throw invalid("a URL must not hold a password: send an authorization header instead");
  }
  return url;
}

/** The bytes that begin a request. */
export function encodeHead({ method, url, headers, body }: MeshRequest): Uint8Array<ArrayBuffer> {
  const lines = [
    `${method} ${url.pathname}${url.search} HTTP/1.1`,
    `host: ${headers.get("host") ?? url.host}`,
  ];
  headers.forEach((value, name) => {
    if (name !== "host") {
      lines.push(`${name}: ${value}`);
    }
  });
  if (!headers.has("accept")) {
    lines.push("accept: */*");
  }
  if (!headers.has("accept-encoding")) {
    // A part of a compressed file is of no use.
    lines.push(`accept-encoding: ${headers.has("range") ? "identity" : "gzip"}`);
  }
  if (body?.length !== undefined) {
    lines.push(`content-length: ${body.length}`);
  } else if (body !== undefined) {
    lines.push("transfer-encoding: chunked");
  } else if (method === "POST" || method === "PUT" || method === "PATCH") {
    lines.push("content-length: 0");
  }
  const text = `${lines.join("\r\n")}\r\n\r\n`;
  // Headers hold Latin-1, so each character is one byte.
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

/** A part of a chunked body. An empty one would end the body. */
export function encodeChunk(part: Uint8Array): Uint8Array<ArrayBuffer> {
  const encoder = new TextEncoder();
  return concat(encoder.encode(`${part.byteLength.toString(16)}\r\n`), part, encoder.encode("\r\n"));
}

/** What ends a chunked body. */
export function encodeLastChunk(): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode("0\r\n\r\n");
}

/** The request that a redirect asks for (Fetch, 4.4); undefined when it asks for none. */
export function redirected(request: MeshRequest, status: number, location: string): MeshRequest {
  const url = parseUrl(location, request.url);
  url.hash ||= request.url.hash;
  const headers = new Headers(request.headers);
  let { method, body } = request;
  if (
    ((status === 301 || status === 302) && method === "POST") ||
    (status === 303 && method !== "GET" && method !== "HEAD")
  ) {
    method = "GET";
    body = undefined;
    for (const name of ["content-encoding", "content-language", "content-location", "content-type"]) {
      headers.delete(name);
    }
  }
  if (body !== undefined && !body.replayable) {
    throw new MeshgateError(
      "failed_precondition",
      `the service redirects to ${url.href}, but the body is a stream that cannot be sent again: send it there`,
    );
  }
  if (url.host !== request.url.host) {
    for (const name of ["authorization", "cookie", "host"]) {
      headers.delete(name);
    }
  }
  return { ...request, url, method, headers, body };
}

function normalizeMethod(method: string): string {
  const upper = method.toUpperCase();
  if (!tokenPattern.test(method) || forbiddenMethods.includes(upper)) {
    throw invalid(`the method ${JSON.stringify(method)} cannot be used`);
  }
  return knownMethods.includes(upper) ? upper : method;
}

async function bodyOf(body: BodyInit | null | undefined, headers: Headers): Promise<RequestBody | undefined> {
  if (body === null || body === undefined) {
    return undefined;
  }
  if (body instanceof ReadableStream) {
    return streamBody(body);
  }
  // Response knows how every other kind of body becomes bytes, and what type they have.
  const response = new Response(body);
  const type = response.headers.get("content-type");
  if (type !== null && !headers.has("content-type")) {
    headers.set("content-type", type);
  }
  return blobBody(body instanceof Blob ? body : await response.blob());
}

/** The body of a Request. Its length is hidden, so a short one is read to find out: not every service knows chunks. */
async function bodyOfRequest(request: Request): Promise<RequestBody | undefined> {
  if (request.method === "GET" || request.method === "HEAD" || request.body === null) {
    return undefined;
  }
  // Firefox has no Request.body.
  if (!(request.body instanceof ReadableStream)) {
    const blob = await request.blob();
    return blob.size === 0 ? undefined : blobBody(blob);
  }
  const reader = request.body.getReader();
  const parts: Uint8Array<ArrayBuffer>[] = [];
  for (let length = 0; length <= maxPeekBytes; ) {
    const { done, value } = await reader.read();
    if (done) {
      return blobBody(new Blob(parts));
    }
    parts.push(value);
    length += value.byteLength;
  }
  return streamBody(
    new ReadableStream({
      async pull(controller) {
        const part = parts.shift() ?? (await reader.read()).value;
        if (part === undefined) {
          controller.close();
        } else {
          controller.enqueue(part);
        }
      },
      cancel: (reason) => reader.cancel(reason),
    }),
  );
}

function blobBody(blob: Blob): RequestBody {
  return { length: blob.size, open: () => blob.stream(), replayable: true };
}

function streamBody(stream: ReadableStream<Uint8Array>): RequestBody {
  let rest: ReadableStream<Uint8Array> | undefined = stream;
  return {
    open() {
      const opened = rest;
      rest = undefined;
      return opened;
    },
    replayable: false,
  };
}

function invalid(message: string): MeshgateError {
  return new MeshgateError("invalid_argument", message);
}
