// SPDX-License-Identifier: Apache-2.0

// What scenarios send, and how they tell whether it arrived.

/** Bytes that tell where one is missing. */
export function pattern(length: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, index) => index % 251);
}

/** Bytes of which no two pieces are the same, by the number of the piece. */
export function piece(number: number, length: number): Uint8Array<ArrayBuffer> {
  const words = new Uint32Array(length / 4).map((_, index) => number * (length / 4) + index);
  return new Uint8Array(words.buffer);
}

/** The SHA-256, in hexadecimal digits. */
export async function sha256(bytes: BufferSource): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** All that comes, to the end. */
export async function readAll(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
