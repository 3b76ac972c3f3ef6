// SPDX-License-Identifier: Apache-2.0

import { type Point, type Size, toScreen, type Viewport } from "./viewport.ts";

export interface LabelWish {
  readonly id: string;
  readonly text: string;
  readonly point: Point;
  /** Higher wins where two labels would overlap. */
  readonly priority: number;
  /** False: the node only stands in the way of other labels. */
  readonly wanted: boolean;
}

/** Where a label goes, in pixels from the middle of its node; y is the baseline. */
export interface Placement {
  readonly x: number;
  readonly y: number;
  readonly anchor: "start" | "middle" | "end";
}

/** The other ends of the lines that a node has, by the id of the node. */
export type LineEnds = ReadonlyMap<string, readonly Point[]>;

/** Average advance of a 12 px system font, rounded up: a label too many is worse than one too few. */
const charWidth = 7;
const lineHeight = 15;
/** From the top of a line to its baseline. */
const ascent = 11;
const gap = 4;
const cell = 96;

/** Longest label drawn on the map; the rest is an ellipsis. The tables show names whole. */
export const maxLabelLength = 24;

/** Cuts a name for the map, by characters as a person counts them. */
export function shorten(text: string): string {
  const chars = [...text];
  return chars.length <= maxLabelLength ? text : `${chars.slice(0, maxLabelLength - 1).join("")}…`;
}

/**
 * Places as many labels as fit without covering each other or a node, greedily
 * by priority: below the node, else above, right or left of it, and never cut
 * off at the side of the picture. The first of these places that none of the
 * node's own lines crosses is taken; where each is crossed, the first. Near O(n)
 * through a grid. The same input gives the same output, so that labels do not
 * jump while the nodes rest.
 */
export function placeLabels(
  wishes: readonly LabelWish[],
  view: Viewport,
  radius: number,
  size: Size,
  ends: LineEnds = new Map(),
): Map<string, Placement> {
  const grid = new Map<string, Box[]>();
  const put = (box: Box): void => {
    for (const key of cellsOf(box)) {
      const boxes = grid.get(key);
      if (boxes === undefined) {
        grid.set(key, [box]);
      } else {
        boxes.push(box);
      }
    }
  };
  const free = (box: Box): boolean =>
    cellsOf(box).every((key) =>
      (grid.get(key) ?? []).every((other) => other.owner === box.owner || !overlap(box, other)),
    );

  for (const wish of wishes) {
    const at = toScreen(view, wish.point);
    put({
      owner: wish.id,
      left: at.x - radius,
      right: at.x + radius,
      top: at.y - radius,
      bottom: at.y + radius,
    });
  }
  const placed = new Map<string, Placement>();
  for (const wish of wishes.filter(({ wanted }) => wanted).sort((a, b) => b.priority - a.priority)) {
    const at = toScreen(view, wish.point);
    const inside = at.x > 0 && at.x < size.width;
    const width = Math.min([...wish.text].length, maxLabelLength) * charWidth;
    const fitting = candidates(radius, width)
      .map(({ placement, left }) => {
        const top = at.y + placement.y - ascent;
        const box = {
          owner: wish.id,
          left: at.x + left,
          right: at.x + left + width,
          top,
          bottom: top + lineHeight,
        };
        return { placement, box };
      })
      .filter(({ box }) => (!inside || (box.left >= 0 && box.right <= size.width)) && free(box));
    const lines = (ends.get(wish.id) ?? []).map((end) => toScreen(view, end));
    const best = fitting.find(({ box }) => !lines.some((end) => crosses(at, end, box))) ?? fitting[0];
    if (best !== undefined) {
      placed.set(wish.id, best.placement);
      put(best.box);
    }
  }
  return placed;
}

function candidates(radius: number, width: number): { placement: Placement; left: number }[] {
  const beside = radius + gap + 2;
  return [
    { placement: { x: 0, y: radius + gap + ascent, anchor: "middle" }, left: -width / 2 },
    { placement: { x: 0, y: -radius - gap - (lineHeight - ascent), anchor: "middle" }, left: -width / 2 },
    { placement: { x: beside, y: 4, anchor: "start" }, left: beside },
    { placement: { x: -beside, y: 4, anchor: "end" }, left: -beside - width },
  ];
}

interface Box {
  readonly owner: string;
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

function overlap(a: Box, b: Box): boolean {
  return a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
}

/** Whether the line from a to b has a point inside of the box: it is cut off at each of its sides in turn. */
function crosses(a: Point, b: Point, box: Box): boolean {
  let [from, to] = [0, 1];
  const sides = [
    [a.x - b.x, a.x - box.left],
    [b.x - a.x, box.right - a.x],
    [a.y - b.y, a.y - box.top],
    [b.y - a.y, box.bottom - a.y],
  ] as const;
  for (const [outwards, room] of sides) {
    if (outwards === 0 && room <= 0) {
      return false;
    }
    if (outwards < 0) {
      from = Math.max(from, room / outwards);
    } else if (outwards > 0) {
      to = Math.min(to, room / outwards);
    }
  }
  return from < to;
}

function cellsOf(box: Box): string[] {
  const keys: string[] = [];
  for (let x = Math.floor(box.left / cell); x <= Math.floor(box.right / cell); x++) {
    for (let y = Math.floor(box.top / cell); y <= Math.floor(box.bottom / cell); y++) {
      keys.push(`${x}/${y}`);
    }
  }
  return keys;
}
