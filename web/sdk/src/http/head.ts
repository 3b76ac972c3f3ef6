// SPDX-License-Identifier: Apache-2.0

import { malformed } from "./malformed.js";
import type { ByteReader } from "./reader.js";

/** How many bytes the status line and headers may have together. */
const maxHeadBytes = 64 * 1024;
/** How many header fields there may be. */
const maxFields = 256;
/** How many interim responses may come before the final one. */
const maxInterim = 16;

/** A token of RFC 9110, 5.6.2: what names of methods and fields are made of. */
export const tokenPattern = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
/** What a field value may hold; Latin-1, as it came. */
const valuePattern = /^[\t\x20-\x7e\x80-\xff]*$/;
const statusPattern = /^HTTP\/1\.([01]) ([1-5]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?$/;

/** The status line and headers of a response. */
export interface Head {
  readonly minor: 0 | 1;
  readonly status: number;
  readonly statusText: string;
  readonly headers: Headers;
}

/** How the end of a body is found (RFC 9112, 6.3). */
export type Framing =
  | { readonly kind: "length"; readonly length: number }
  | { readonly kind: "chunked" }
  | { readonly kind: "close" };

/** Reads the head of the final response; undefined when the stream ends before its first byte. */
export async function readHead(reader: ByteReader): Promise<Head | undefined> {
  for (let interim = 0; interim <= maxInterim; interim++) {
    const head = await readOneHead(reader);
    if (head === undefined || head.status >= 200) {
      return head;
    }
    if (head.status === 101) {
      throw malformed("it switches protocols, which was not asked for");
    }
  }
  throw malformed("it has too many interim responses");
}

async function readOneHead(reader: ByteReader): Promise<Head | undefined> {
  const line = await reader.readLine(maxHeadBytes);
  if (line === undefined) {
    return undefined;
  }
  const [, minor, status, statusText = ""] = statusPattern.exec(line) ?? [];
  if (status === undefined) {
    throw malformed("it does not begin with a status line");
  }
  return {
    minor: minor === "1" ? 1 : 0,
    status: Number(status),
    statusText,
    headers: await readFields(reader, maxHeadBytes - line.length - 2),
  };
}

/** Reads header or trailer fields and the empty line behind them. */
export async function readFields(reader: ByteReader, limit: number): Promise<Headers> {
  const headers = new Headers();
  for (let count = 0; count <= maxFields; count++) {
    const line = await reader.readLine(limit);
    if (line === undefined) {
      throw malformed("it ends in the middle of the headers");
    }
    if (line === "") {
      return headers;
    }
    limit -= line.length + 2;
    // A continuation line, white space before the colon and other liberties fail here.
    const colon = line.indexOf(":");
    const name = line.slice(0, Math.max(colon, 0));
    const value = line.slice(colon + 1);
    if (!tokenPattern.test(name) || !valuePattern.test(value)) {
      throw malformed("a header has characters where they must not be");
    }
    headers.append(name, value);
  }
  throw malformed("it has too many headers");
}

/**
 * How the body ends. Whatever two readers might understand differently is
 * refused: two lengths, a length beside a transfer coding, another coding.
 */
export function framing(method: string, { minor, status, headers }: Head): Framing {
  const coding = headers.get("transfer-encoding");
  const length = headers.get("content-length");
  if (coding !== null && (length !== null || minor === 0 || coding.toLowerCase() !== "chunked")) {
    throw malformed("its transfer encoding is not plain chunked");
  }
  if (length !== null && !/^\d{1,15}$/.test(length)) {
    throw malformed("its content length is not one number");
  }
  if (method === "HEAD" || isNullBodyStatus(status)) {
    return { kind: "length", length: 0 };
  }
  if (coding !== null) {
    return { kind: "chunked" };
  }
  return length === null ? { kind: "close" } : { kind: "length", length: Number(length) };
}

/** Whether the connection may carry another request after this response. */
export function keepsAlive(method: string, head: Head): boolean {
  const options = (head.headers.get("connection") ?? "").toLowerCase().split(/[\s,]+/);
  // A service that announces a body where there is none may also send it.
  const announcesBody =
    head.headers.has("transfer-encoding") || (head.headers.get("content-length") ?? "0") !== "0";
  const contradicts =
    method !== "HEAD" && head.status !== 304 && isNullBodyStatus(head.status) && announcesBody;
  return head.minor === 1 && !options.includes("close") && !contradicts;
}

/** Whether a response with this status never has a body. */
export function isNullBodyStatus(status: number): boolean {
  return status === 204 || status === 205 || status === 304;
}
