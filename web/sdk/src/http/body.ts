// SPDX-License-Identifier: Apache-2.0

import { type Framing, readFields } from "./head.js";
import { malformed, truncated } from "./malformed.js";
import type { ByteReader } from "./reader.js";

/** The largest part of a body that is handed over at once. */
const maxPartBytes = 64 * 1024;
/** How long the line before a chunk may be. */
const maxChunkLineBytes = 1024;
/** How many bytes trailers may have. */
const maxTrailerBytes = 16 * 1024;
/** A chunk size, which fits in a number; extensions are allowed and mean nothing. */
const chunkPattern = /^([0-9a-fA-F]{1,12})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?$/;

type Bytes = Uint8Array<ArrayBuffer>;

/** Reads a body up to its end, which is not the end of the connection unless it is so framed. */
export async function* readBody(reader: ByteReader, framing: Framing): AsyncGenerator<Bytes, void, void> {
  switch (framing.kind) {
    case "length":
      yield* readExactly(reader, framing.length, "the body");
      return;
    case "chunked":
      yield* readChunks(reader);
      return;
    case "close":
      for (
        let part = await reader.read(maxPartBytes);
        part !== undefined;
        part = await reader.read(maxPartBytes)
      ) {
        yield part;
      }
  }
}

async function* readExactly(
  reader: ByteReader,
  length: number,
  what: string,
): AsyncGenerator<Bytes, void, void> {
  for (let left = length; left > 0; ) {
    const part = await reader.read(Math.min(left, maxPartBytes));
    if (part === undefined) {
      throw truncated(what);
    }
    left -= part.byteLength;
    yield part;
  }
}

async function* readChunks(reader: ByteReader): AsyncGenerator<Bytes, void, void> {
  for (;;) {
    const line = await readLine(reader, maxChunkLineBytes);
    const size = chunkPattern.exec(line)?.[1];
    if (size === undefined) {
      throw malformed("a chunk has no valid size");
    }
    const length = Number.parseInt(size, 16);
    if (length === 0) {
      await readFields(reader, maxTrailerBytes);
      return;
    }
    yield* readExactly(reader, length, "a chunk");
    if ((await readLine(reader, 2)) !== "") {
      throw malformed("a chunk is longer than its size says");
    }
  }
}

async function readLine(reader: ByteReader, limit: number): Promise<string> {
  const line = await reader.readLine(limit);
  if (line === undefined) {
    throw truncated("the body");
  }
  return line;
}

/** How the use of a connection for one response ended. */
export interface BodyEnd {
  /** The body was read to its end. */
  onComplete(): void;
  /** The body cannot be read to its end, or nobody wants it. */
  onBroken(error: unknown): void;
}

/** A body as a stream that reads no further ahead than it is read. */
export function bodyStream(reader: ByteReader, framing: Framing, end: BodyEnd): ReadableStream<Bytes> {
  const parts = readBody(reader, framing);
  return new ReadableStream<Bytes>(
    {
      async pull(controller) {
        try {
          const { done, value } = await parts.next();
          if (done) {
            end.onComplete();
            controller.close();
          } else {
            controller.enqueue(value);
          }
        } catch (error) {
          end.onBroken(error);
          throw error;
        }
      },
      cancel: (reason) => end.onBroken(reason),
    },
    { highWaterMark: 0 },
  );
}
