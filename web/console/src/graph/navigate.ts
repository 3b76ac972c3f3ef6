// SPDX-License-Identifier: Apache-2.0

import type { Point } from "./viewport.ts";

export type Direction = "left" | "right" | "up" | "down";

const units: Record<Direction, Point> = {
  left: { x: -1, y: 0 },
  right: { x: 1, y: 0 },
  up: { x: 0, y: -1 },
  down: { x: 0, y: 1 },
};

/** The direction of an arrow key; undefined for any other key. */
export function arrowDirection(key: string): Direction | undefined {
  const name = key.replace(/^Arrow/, "").toLowerCase();
  return key.startsWith("Arrow") && name in units ? (name as Direction) : undefined;
}

/**
 * The node that an arrow key moves to: the nearest within 60 degrees of the
 * direction, where being off the axis costs double. When there is none, any node
 * on that side, so that no node is out of reach. Undefined at the border.
 */
export function neighbourTowards(
  points: ReadonlyMap<string, Point>,
  from: string,
  direction: Direction,
): string | undefined {
  const origin = points.get(from);
  if (origin === undefined) {
    return undefined;
  }
  const unit = units[direction];
  let best: string | undefined;
  let lowest = Number.POSITIVE_INFINITY;
  for (const [id, point] of points) {
    const dx = point.x - origin.x;
    const dy = point.y - origin.y;
    const along = dx * unit.x + dy * unit.y;
    const across = Math.abs(dx * unit.y) + Math.abs(dy * unit.x);
    if (id === from || along <= 0) {
      continue;
    }
    // 1e6 puts every node outside the cone behind every node inside it.
    const cost = along + 2 * across + (across > along * Math.sqrt(3) ? 1e6 : 0);
    if (cost < lowest) {
      lowest = cost;
      best = id;
    }
  }
  return best;
}
