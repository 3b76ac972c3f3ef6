// SPDX-License-Identifier: Apache-2.0

import { MeshgateError } from "./error.js";

/** All parts in one array. */
export function concat(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.byteLength, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.byteLength;
  }
  return whole;
}

/** The bytes of a chunk, in memory that a data channel takes. */
export function toBytes(chunk: unknown): Uint8Array<ArrayBuffer> {
  if (chunk instanceof ArrayBuffer) {
    return new Uint8Array(chunk);
  }
  if (!ArrayBuffer.isView(chunk)) {
    throw new MeshgateError(
      "invalid_argument",
      "only bytes can be written: pipe text through a TextEncoderStream first",
    );
  }
  const { buffer, byteOffset, byteLength } = chunk;
  return buffer instanceof ArrayBuffer
    ? new Uint8Array(buffer, byteOffset, byteLength)
    : new Uint8Array(new Uint8Array(buffer, byteOffset, byteLength));
}
