// SPDX-License-Identifier: Apache-2.0

import { abortError, type MeshgateError } from "./error.js";

/** A promise with its ends in hand. Its rejection is never reported as unhandled. */
export interface Deferred<T> {
  readonly promise: Promise<T>;
  resolve(value: T): void;
  reject(reason: unknown): void;
}

/** Makes a {@link Deferred}. */
export function deferred<T>(): Deferred<T> {
  let resolve: (value: T) => void = () => {};
  let reject: (reason: unknown) => void = () => {};
  const promise = new Promise<T>((onResolve, onReject) => {
    resolve = onResolve;
    reject = onReject;
  });
  promise.catch(() => {});
  return { promise, resolve, reject };
}

/** What a promise settles with, or a rejection as soon as the signal aborts. */
export function orAbort<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(abortError(signal));
    if (signal.aborted) {
      abort();
      return;
    }
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/**
 * Runs an action with a signal that aborts with any of the given ones, or with
 * the error when the time is over.
 */
export async function withTimeLimit<T>(
  ms: number,
  error: () => MeshgateError,
  signals: (AbortSignal | undefined)[],
  action: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(error()), ms);
  try {
    return await action(anySignal(limit.signal, ...signals));
  } finally {
    clearTimeout(timer);
  }
}

/** A signal that aborts as soon as one of those given does. */
export function anySignal(...signals: (AbortSignal | null | undefined)[]): AbortSignal {
  return AbortSignal.any(signals.filter((signal) => signal instanceof AbortSignal));
}

/** Waits; ends early when the network comes back, and rejects when the signal aborts. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  const over = deferred<void>();
  const stop = new AbortController();
  const timer = setTimeout(over.resolve, ms);
  onOnline(over.resolve, stop.signal);
  try {
    await orAbort(over.promise, signal);
  } finally {
    clearTimeout(timer);
    stop.abort();
  }
}

/** Calls back when the browser says that the network is there again, until the signal aborts. */
export function onOnline(callback: () => void, until: AbortSignal): void {
  // Not there outside browsers.
  globalThis.addEventListener?.("online", () => callback(), { signal: until });
}
