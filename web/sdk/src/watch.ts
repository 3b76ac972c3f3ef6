// SPDX-License-Identifier: Apache-2.0

import type { Client } from "@connectrpc/connect";
import { anySignal, onOnline, pause } from "./async.js";
import { backoffMs } from "./backoff.js";
import { isTransient, MeshgateError } from "./error.js";
import type { Watch, WatchMeshResponse } from "./gen/meshgate/v1/watch_pb.js";
import type { MeshNode } from "./gen/v1/node_pb.js";
import type { StateDetail } from "./types.js";

/**
 * Follows the mesh over as many streams as it takes. Ends when the signal
 * aborts; throws what waiting does not mend. The nodes are told before they
 * are yielded.
 */
export async function* watchMesh(
  gateway: Client<typeof Watch>,
  signal: AbortSignal,
  onState: (detail: StateDetail) => void,
  onNodes: (nodes: readonly MeshNode[]) => void,
): AsyncGenerator<WatchMeshResponse, void, void> {
  const emit = (detail: Omit<StateDetail, "scope" | "node">) =>
    onState({ scope: "gateway", node: "", ...detail });
  let fatal: MeshgateError | undefined;
  try {
    for (let failures = 0; !signal.aborted; failures++) {
      const attempt = new AbortController();
      let error = new MeshgateError("unavailable", "the gateway ended the stream of changes");
      emit({ state: "connecting" });
      // When the network comes back, the stream may be dead and not know it.
      onOnline(() => attempt.abort(new MeshgateError("aborted", "the network has changed")), attempt.signal);
      try {
        let isFirst = true;
        for await (const mesh of gateway.watchMesh({}, { signal: anySignal(signal, attempt.signal) })) {
          if (isFirst) {
            isFirst = false;
            failures = 0;
            emit({ state: "connected" });
          }
          onNodes(mesh.nodes);
          yield mesh;
        }
      } catch (reason) {
        error = MeshgateError.from(reason);
      } finally {
        attempt.abort();
      }
      if (!signal.aborted) {
        if (!mayRecover(error)) {
          fatal = error;
          throw error;
        }
        const retryInMs = backoffMs(failures + 1);
        emit({ state: "waiting", attempt: failures + 1, retryInMs, error });
        await pause(retryInMs, signal).catch(() => {});
      }
    }
  } finally {
    emit({ state: "closed", ...(fatal !== undefined && { error: fatal }) });
  }
}

/** A stream that breaks off, at a gateway or at a proxy before it, ends in various ways. */
function mayRecover(error: MeshgateError): boolean {
  return (
    isTransient(error) || error.code === "unknown" || error.code === "internal" || error.code === "data_loss"
  );
}
