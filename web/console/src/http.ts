// SPDX-License-Identifier: Apache-2.0

import { type Readable, writable } from "svelte/store";
import type { Backend, HttpRequest, Target } from "./backend.ts";
import { explainConnect, type Problem } from "./problem.ts";

/** Bytes of a body that are kept. The rest is not fetched. */
export const bodyLimit = 2 * 1024 * 1024;

/** A response as far as it has come. */
export interface HttpReply {
  readonly status: number;
  readonly statusText: string;
  readonly headers: readonly (readonly [string, string])[];
  /** Media type in lower case without parameters; empty when not given. */
  readonly type: string;
  readonly body: Uint8Array<ArrayBuffer>;
  /** True when the body went on past bodyLimit. */
  readonly cut: boolean;
  /** From sending the request to the end of the body, so far. */
  readonly tookMs: number;
}

export interface HttpState {
  readonly target: Target;
  readonly request: HttpRequest;
  readonly phase: "waiting" | "receiving" | "done" | "failed";
  readonly reply: HttpReply | undefined;
  readonly problem: Problem | undefined;
}

/** One request and its response. Subscribe to follow it. */
export interface HttpExchange extends Readable<HttpState> {
  cancel(): void;
}

/** Sends a request at once. */
export function sendHttp(
  backend: Backend,
  target: Target,
  request: HttpRequest,
  now: () => number = () => performance.now(),
): HttpExchange {
  const stop = new AbortController();
  const started = now();
  let state: HttpState = { target, request, phase: "waiting", reply: undefined, problem: undefined };
  const store = writable(state);
  const change = (part: Partial<HttpState>): void => {
    state = { ...state, ...part };
    store.set(state);
  };

  const run = async (): Promise<void> => {
    const response = await backend.fetch(target, request, stop.signal);
    let reply: HttpReply = {
      status: response.status,
      statusText: response.statusText,
      headers: [...response.headers],
      type: (response.headers.get("content-type") ?? "").split(";")[0]?.trim().toLowerCase() ?? "",
      body: new Uint8Array(),
      cut: false,
      tookMs: now() - started,
    };
    change({ phase: "receiving", reply });
    const { body, cut } = await readBody(response);
    reply = { ...reply, body, cut, tookMs: now() - started };
    change({ phase: "done", reply });
  };
  run().catch((error: unknown) => change({ phase: "failed", problem: explainConnect(error, target) }));

  return {
    subscribe: store.subscribe,
    cancel() {
      if (state.phase === "waiting" || state.phase === "receiving") {
        stop.abort();
      }
    },
  };
}

async function readBody(response: Response): Promise<{ body: Uint8Array<ArrayBuffer>; cut: boolean }> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  const reader = response.body?.getReader();
  while (reader !== undefined && size <= bodyLimit) {
    const part = await reader.read();
    if (part.done) {
      break;
    }
    chunks.push(part.value);
    size += part.value.length;
  }
  const cut = size > bodyLimit;
  if (cut) {
    await reader?.cancel().catch(() => undefined);
  }
  const body = new Uint8Array(Math.min(size, bodyLimit));
  let at = 0;
  for (const chunk of chunks) {
    body.set(chunk.subarray(0, body.length - at), at);
    at += Math.min(chunk.length, body.length - at);
  }
  return { body, cut };
}

/**
 * Reads "Name: value" lines. Returns the lines it cannot read, so that they can
 * be pointed out.
 */
export function parseHeaders(text: string): { headers: [string, string][]; wrong: string[] } {
  const headers: [string, string][] = [];
  const wrong: string[] = [];
  for (const line of text.split(/\r?\n/).filter((part) => part.trim() !== "")) {
    const match = /^\s*([!#$%&'*+\-.^_`|~0-9A-Za-z]+)\s*:\s*(.*?)\s*$/.exec(line);
    if (match?.[1] === undefined || match[2] === undefined) {
      wrong.push(line.trim());
    } else {
      headers.push([match[1], match[2]]);
    }
  }
  return { headers, wrong };
}

/**
 * A document for an iframe that may do nothing: its own policy forbids every
 * request, on top of the sandbox that forbids scripts, forms and pop-ups. Links
 * open in a new window unless they say otherwise, and so do nothing.
 */
export function inertDocument(html: string): string {
  return `<!doctype html><meta http-equiv="Content-Security-Policy" content="default-src 'none'"><meta name="referrer" content="no-referrer"><base target="_blank">${html}`;
}
