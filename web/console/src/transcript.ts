// SPDX-License-Identifier: Apache-2.0

export type Direction = "in" | "out";

/** Bytes that went one way, joined while they belong together. */
export interface Entry {
  readonly id: number;
  readonly at: Date;
  readonly direction: Direction;
  readonly bytes: Uint8Array;
  /** The bytes as UTF-8, decoded across chunk borders. */
  readonly text: string;
}

/** What was said on a connection. An immutable value: each change makes a new one. */
export interface Transcript {
  readonly entries: readonly Entry[];
  readonly received: number;
  readonly sent: number;
  /** Bytes no longer shown, because the transcript is bounded. */
  readonly dropped: number;
}

export const emptyTranscript: Transcript = { entries: [], received: 0, sent: 0, dropped: 0 };

/** Bytes kept for display. A connection may carry gigabytes; the page must not. */
export const transcriptLimit = 256 * 1024;
const entryLimit = 8 * 1024;
const joinWithinMs = 50;

/** Writes a transcript; one per connection, because it holds the state of the decoders. */
export interface Scribe {
  append(transcript: Transcript, direction: Direction, bytes: Uint8Array, at: Date): Transcript;
}

export function createScribe(): Scribe {
  const decoders = { in: new TextDecoder(), out: new TextDecoder() };
  let nextId = 1;
  return {
    append(transcript, direction, bytes, at) {
      const text = decoders[direction].decode(bytes, { stream: true });
      const entries = [...transcript.entries];
      const last = entries.at(-1);
      if (last !== undefined && belongs(last, direction, bytes, at)) {
        entries[entries.length - 1] = {
          ...last,
          bytes: join(last.bytes, bytes),
          text: last.text + text,
        };
      } else {
        entries.push({ id: nextId++, at, direction, bytes: bytes.slice(), text });
      }
      const dropped = trim(entries);
      return {
        entries,
        received: transcript.received + (direction === "in" ? bytes.length : 0),
        sent: transcript.sent + (direction === "out" ? bytes.length : 0),
        dropped: transcript.dropped + dropped,
      };
    },
  };
}

function belongs(last: Entry, direction: Direction, bytes: Uint8Array, at: Date): boolean {
  return (
    last.direction === direction &&
    at.getTime() - last.at.getTime() < joinWithinMs &&
    last.bytes.length + bytes.length <= entryLimit
  );
}

function join(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** Takes entries off the front until the rest is within the limit; returns the bytes taken. */
function trim(entries: Entry[]): number {
  let size = entries.reduce((sum, entry) => sum + entry.bytes.length, 0);
  let dropped = 0;
  while (size > transcriptLimit && entries.length > 1) {
    const length = entries.shift()?.bytes.length ?? 0;
    size -= length;
    dropped += length;
  }
  return dropped;
}
