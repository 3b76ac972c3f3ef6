// SPDX-License-Identifier: Apache-2.0

import { readable } from "svelte/store";

/** The time in milliseconds, told once a second while somebody looks. */
export const clock = readable(Date.now(), (set) => {
  set(Date.now());
  const timer = setInterval(() => set(Date.now()), 1000);
  return () => clearInterval(timer);
});
