// SPDX-License-Identifier: Apache-2.0

import { orAbort } from "./async.js";
import { abortError, isBlocked, MeshgateError } from "./error.js";
import { Feature, type MeshNode } from "./gen/v1/node_pb.js";
import { neverOpened } from "./websocket.js";

/**
 * Who is at the far end of a peer connection: the node itself, the gateway that
 * answers for a node without Meshgate, or one of the two.
 */
export type Answerer = "node" | "gateway" | "either";

/** What a client has learned of its gateway, and of the nodes that it answers for. */
export class Gateway {
  readonly #url: string;
  readonly #ask: (signal: AbortSignal) => Promise<unknown>;
  readonly #runsMeshgate = new Map<string, boolean>();
  #hasAnswered = false;

  /** `ask` makes an ordinary call to the gateway; what it answers does not matter. */
  constructor(baseUrl: string | URL, ask: (signal: AbortSignal) => Promise<unknown>) {
    this.#url = String(baseUrl).replace(/\/+$/, "");
    this.#ask = ask;
  }

  /** Notes that the gateway can be reached from here. */
  answered(): void {
    this.#hasAnswered = true;
  }

  /** Notes the nodes of the mesh. */
  tells(nodes: readonly MeshNode[]): void {
    this.answered();
    this.#runsMeshgate.clear();
    for (const { id, features } of nodes) {
      this.#runsMeshgate.set(
        id,
        features.some(({ feature }) => feature === Feature.NODES),
      );
    }
  }

  /** Who answers for a node; `either` until the nodes of the mesh were told. */
  answererOf(node: string): Answerer {
    const runsMeshgate = this.#runsMeshgate.get(node);
    return runsMeshgate === undefined ? "either" : runsMeshgate ? "node" : "gateway";
  }

  /**
   * Decides after a failed attempt whether another may do better, and rejects
   * when not. A WebSocket that never opened looks the same whether the gateway
   * restarts, a proxy stops WebSockets or the gateway does not allow this page,
   * so an ordinary call is made to tell. A gateway that has answered before is
   * waited for without that.
   */
  async checkRetry(error: MeshgateError, signal: AbortSignal): Promise<void> {
    if (this.#hasAnswered || !neverOpened(error)) {
      return;
    }
    try {
      await orAbort(this.#ask(signal), signal);
    } catch (reason) {
      if (signal.aborted) {
        throw abortError(signal);
      }
      const answer = MeshgateError.from(reason);
      if (isBlocked(answer)) {
        throw new MeshgateError("unavailable", cannotReach(this.#url), { cause: answer });
      }
    }
    this.answered();
  }
}

/** All that a page can know: browsers keep the reason from it. */
function cannotReach(url: string): string {
  const { origin } = globalThis.location ?? {};
  const isOurs = origin !== undefined && URL.canParse(url) && new URL(url).origin === origin;
  const causes = isOurs
    ? "check that it is up"
    : `check that it is up there, that it was started with --cors.origins ${origin ?? "ORIGIN"}, which allows ` +
      "this page, and that the browser trusts its certificate";
  return `the gateway ${url} cannot be reached: ${causes} (browsers do not tell a page which of these it is)`;
}
