// SPDX-License-Identifier: Apache-2.0

import { type Readable, writable } from "svelte/store";
import type { Backend, Connection, Path, Target } from "./backend.ts";
import { explainBreak, explainConnect, isCanceled, type Problem } from "./problem.ts";
import { createScribe, emptyTranscript, type Transcript } from "./transcript.ts";

/** Where a TCP session stands. */
export type TcpPhase = "opening" | "open" | "closed";

export interface TcpState {
  readonly target: Target;
  readonly phase: TcpPhase;
  readonly transcript: Transcript;
  /** True once this side has said that it sends no more. */
  readonly finished: boolean;
  /** True once the other side has said so. */
  readonly ended: boolean;
  /** Why it is closed; undefined when it ended in order. */
  readonly problem: Problem | undefined;
}

/** One TCP connection and what was said on it. Subscribe to follow it. */
export interface TcpSession extends Readable<TcpState> {
  readonly target: Target;
  /** Resolves when the bytes are accepted, which waits for a slow reader at the other side. */
  send(bytes: Uint8Array): Promise<void>;
  /** Sends no more; the other side may go on. */
  finish(): Promise<void>;
  /** Empties the transcript. */
  clear(): void;
  close(): void;
  /** The path that the packets take now; undefined while there is no connection. */
  path(): Promise<Path | undefined>;
}

/** Opens a connection at once. */
export function openTcp(backend: Backend, target: Target): TcpSession {
  const stop = new AbortController();
  const scribe = createScribe();
  let connection: Connection | undefined;
  let writer: WritableStreamDefaultWriter<Uint8Array> | undefined;
  let state: TcpState = {
    target,
    phase: "opening",
    transcript: emptyTranscript,
    finished: false,
    ended: false,
    problem: undefined,
  };
  const store = writable(state);
  const change = (part: Partial<TcpState>): void => {
    state = { ...state, ...part };
    store.set(state);
  };
  const record = (direction: "in" | "out", bytes: Uint8Array): void => {
    change({ transcript: scribe.append(state.transcript, direction, bytes, new Date()) });
  };
  const end = (error: unknown): void => {
    if (state.phase === "closed") {
      return;
    }
    if (state.phase === "opening") {
      change({ phase: "closed", problem: explainConnect(error, target) });
    } else {
      const wanted = error === undefined || isCanceled(error);
      change({ phase: "closed", problem: wanted ? undefined : explainBreak(error, target) });
    }
  };

  const run = async (): Promise<void> => {
    connection = await backend.connect(target, stop.signal);
    writer = connection.writable.getWriter();
    // Failures of the writer are reported by send, those of the connection below.
    writer.closed.catch(() => undefined);
    change({ phase: "open" });
    const reader = connection.readable.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      record("in", part.value);
    }
    change({ ended: true });
    await connection.closed;
  };
  run().then(
    () => end(undefined),
    (error: unknown) => {
      connection?.closed.catch(() => undefined);
      end(error);
    },
  );

  return {
    target,
    subscribe: store.subscribe,
    async send(bytes) {
      if (writer === undefined || state.phase !== "open" || state.finished || bytes.length === 0) {
        return;
      }
      record("out", bytes);
      try {
        await writer.write(bytes);
      } catch (error) {
        end(error);
      }
    },
    async finish() {
      if (writer === undefined || state.phase !== "open" || state.finished) {
        return;
      }
      change({ finished: true });
      try {
        await writer.close();
      } catch (error) {
        end(error);
      }
    },
    clear() {
      change({
        transcript: { ...emptyTranscript, received: state.transcript.received, sent: state.transcript.sent },
      });
    },
    close() {
      if (state.phase === "closed") {
        return;
      }
      if (connection === undefined) {
        stop.abort();
        return;
      }
      end(undefined);
      connection.close().catch(() => undefined);
    },
    async path() {
      return state.phase === "open" ? connection?.path() : undefined;
    },
  };
}
