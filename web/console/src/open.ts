// SPDX-License-Identifier: Apache-2.0

import type { Target } from "./backend.ts";
import type { ConnectView } from "./route.ts";
import type { Store } from "./store.ts";

/** What a click on a service does: connect, or ask for the first page of a site. */
export function opener(store: Store): (target: Target, view: ConnectView) => void {
  return (target, view) => {
    if (view === "http") {
      store.sendHttp(target, { method: "GET", path: "/", headers: [], body: undefined });
    } else {
      store.openTcp(target);
    }
  };
}
