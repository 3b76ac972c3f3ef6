// SPDX-License-Identifier: Apache-2.0

import { concat } from "../bytes.js";
import { malformed } from "./malformed.js";

const lineFeed = 10;
const carriageReturn = 13;

/** Reads lines and bytes from a stream, as HTTP/1.1 mixes them. */
export class ByteReader {
  readonly #reader: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>;
  #rest: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #filling: Promise<boolean> | undefined;
  #received = 0;

  constructor(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
    this.#reader = stream.getReader();
  }

  /** Whether there are bytes that arrived and were not read. */
  get hasRest(): boolean {
    return this.#rest.byteLength > 0;
  }

  /** How many bytes have arrived so far. */
  get received(): number {
    return this.#received;
  }

  /** Waits for at least one byte; false at the end. May be called again before it is done. */
  fill(): Promise<boolean> {
    if (this.hasRest) {
      return Promise.resolve(true);
    }
    this.#filling ??= this.#fill().finally(() => {
      this.#filling = undefined;
    });
    return this.#filling;
  }

  /** Reads some bytes, at most that many; undefined at the end. */
  async read(max: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    if (!(await this.fill())) {
      return undefined;
    }
    const bytes = this.#rest.subarray(0, max);
    this.#rest = this.#rest.subarray(bytes.byteLength);
    return bytes;
  }

  /**
   * Reads a line that ends with CR LF, and leaves that off; undefined when the
   * stream ends before its first byte. The limit is in bytes and includes CR LF.
   */
  async readLine(limit: number): Promise<string | undefined> {
    const parts: Uint8Array[] = [];
    for (let left = limit; ; ) {
      if (!(await this.fill())) {
        if (parts.length === 0) {
          return undefined;
        }
        throw malformed("it ends in the middle of a line");
      }
      const end = this.#rest.indexOf(lineFeed) + 1;
      const part = end === 0 ? this.#rest : this.#rest.subarray(0, end);
      left -= part.byteLength;
      if (left < 0) {
        throw malformed("its headers are too long");
      }
      parts.push(part);
      this.#rest = this.#rest.subarray(part.byteLength);
      if (end !== 0) {
        return decodeLine(concat(...parts));
      }
    }
  }

  async #fill(): Promise<boolean> {
    while (!this.hasRest) {
      const { done, value } = await this.#reader.read();
      if (done) {
        return false;
      }
      this.#rest = value;
      this.#received += value.byteLength;
    }
    return true;
  }
}

/** A bare CR or LF is where two readers may come to different ends: neither is accepted. */
function decodeLine(bytes: Uint8Array): string {
  const end = bytes.byteLength - 2;
  if (end < 0 || bytes.indexOf(carriageReturn) !== end) {
    throw malformed("a line does not end with CR LF, or has a CR inside");
  }
  let text = "";
  for (const byte of bytes.subarray(0, end)) {
    text += String.fromCharCode(byte);
  }
  return text;
}
