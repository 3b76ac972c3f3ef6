// SPDX-License-Identifier: Apache-2.0

import { setImmediate } from "node:timers/promises";

/** Waits, task by task, until a condition holds; the timeout of the test run bounds it. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) {
    await setImmediate();
  }
}

/** Waits until nothing has happened for some tasks in a row. */
export async function settled(): Promise<void> {
  for (let task = 0; task < 50; task++) {
    await setImmediate();
  }
}

/** All bytes that are left in a stream. */
export async function readAll(stream: ReadableStream<Uint8Array<ArrayBuffer>>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const part of stream) {
    parts.push(part);
  }
  return Buffer.concat(parts);
}

/** Bytes that differ from place to place. */
export function pattern(length: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, index) => (index * 31 + (index >> 8)) & 0xff);
}
