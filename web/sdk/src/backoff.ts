// SPDX-License-Identifier: Apache-2.0

/** The bound of the first pause; each further one is twice as long, */
const baseMs = 500;
/** up to this. */
const capMs = 30_000;

/**
 * How long to wait after that many failures in a row: exponential with full
 * jitter, so that a gateway that comes back is not met by everybody at once.
 */
export function backoffMs(failures: number, random: () => number = Math.random): number {
  return Math.round(random() * Math.min(capMs, baseMs * 2 ** Math.min(failures - 1, 16)));
}
