// SPDX-License-Identifier: Apache-2.0

import type { EdgeModel, EdgeState } from "./model.ts";
import type { Point } from "./viewport.ts";

/** Edges drawn at most: public nodes form a full mesh, which is n² lines and no picture. */
export const edgeLimit = 2500;

/** The edges worth drawing: those with a known state first, then the cheapest. All when few enough. */
export function drawnEdges(edges: readonly EdgeModel[], limit = edgeLimit): readonly EdgeModel[] {
  if (edges.length <= limit) {
    return edges;
  }
  const known = (edge: EdgeModel): number => (edge.state === "unknown" ? 1 : 0);
  return [...edges].sort((a, b) => known(a) - known(b) || a.weight - b.weight).slice(0, limit);
}

/** The order of drawing: what matters most comes last and lies on top. */
export const edgeStates: readonly EdgeState[] = ["unknown", "waiting", "online", "relayed", "down"];

/**
 * One SVG path per state: a thousand lines in four elements. Edges of the given
 * node come apart, so that they can be made to stand out.
 */
export function edgePaths(
  edges: readonly EdgeModel[],
  positions: ReadonlyMap<string, Point>,
  node = "",
): Record<EdgeState, { all: string; own: string }> {
  const parts: Record<EdgeState, { all: string[]; own: string[] }> = {
    online: { all: [], own: [] },
    relayed: { all: [], own: [] },
    down: { all: [], own: [] },
    waiting: { all: [], own: [] },
    unknown: { all: [], own: [] },
  };
  for (const edge of edges) {
    const a = positions.get(edge.source);
    const b = positions.get(edge.target);
    if (a !== undefined && b !== undefined) {
      const line = `M${round(a.x)} ${round(a.y)}L${round(b.x)} ${round(b.y)}`;
      const own = edge.source === node || edge.target === node;
      parts[edge.state][own ? "own" : "all"].push(line);
    }
  }
  const joined = ({ all, own }: { all: string[]; own: string[] }) => ({
    all: all.join(""),
    own: own.join(""),
  });
  return {
    online: joined(parts.online),
    relayed: joined(parts.relayed),
    down: joined(parts.down),
    waiting: joined(parts.waiting),
    unknown: joined(parts.unknown),
  };
}

/** The other ends of the lines of each node that has any. */
export function lineEnds(
  edges: readonly EdgeModel[],
  positions: ReadonlyMap<string, Point>,
): ReadonlyMap<string, readonly Point[]> {
  const ends = new Map<string, Point[]>();
  for (const { source, target } of edges) {
    for (const [one, other] of [
      [source, target],
      [target, source],
    ] as const) {
      const end = positions.get(other);
      if (end !== undefined && positions.has(one)) {
        const list = ends.get(one);
        if (list === undefined) {
          ends.set(one, [end]);
        } else {
          list.push(end);
        }
      }
    }
  }
  return ends;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
