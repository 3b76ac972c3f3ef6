// SPDX-License-Identifier: Apache-2.0

import type { Readable } from "svelte/store";

/** Resolves with the first value for which the condition holds; rejects after a deadline. */
export function until<T>(
  store: Readable<T>,
  what: string,
  condition: (value: T) => boolean,
  deadlineMs = 30_000,
): Promise<T> {
  return new Promise((resolve, reject) => {
    let last: T | undefined;
    let stop: (() => void) | undefined;
    let done = false;
    const finish = (): void => {
      done = true;
      clearTimeout(timer);
      stop?.();
    };
    const timer = setTimeout(() => {
      finish();
      reject(new Error(`gave up waiting until ${what}; last value: ${JSON.stringify(last)?.slice(0, 500)}`));
    }, deadlineMs);
    stop = store.subscribe((value) => {
      last = value;
      if (!done && condition(value)) {
        resolve(value);
        finish();
      }
    });
    if (done) {
      stop();
    }
  });
}
