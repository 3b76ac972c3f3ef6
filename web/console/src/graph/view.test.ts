// SPDX-License-Identifier: Apache-2.0

// The pure parts of looking at the map: viewport, arrow keys, labels, lines.

import assert from "node:assert/strict";
import { test } from "node:test";
import { type LabelWish, maxLabelLength, placeLabels, shorten } from "./labels.ts";
import type { EdgeModel, EdgeState } from "./model.ts";
import { arrowDirection, neighbourTowards } from "./navigate.ts";
import { drawnEdges, edgePaths, lineEnds } from "./paths.ts";
import { fit, type Point, pan, reveal, toPlane, toScreen, wheelFactor, zoomAt } from "./viewport.ts";

const size = { width: 800, height: 600 };
const close = (a: number, b: number): void => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`);

test("screen and plane are inverse", () => {
  const view = { x: 13, y: -7, k: 1.7 };
  const there = toPlane(view, toScreen(view, { x: 3, y: 4 }));
  close(there.x, 3);
  close(there.y, 4);
});

test("zoomAt keeps the point under the pointer", () => {
  const view = { x: 100, y: 50, k: 1 };
  const at = { x: 320, y: 240 };
  const next = zoomAt(view, at, 1.5);
  close(next.k, 1.5);
  close(toPlane(next, at).x, toPlane(view, at).x);
  close(toPlane(next, at).y, toPlane(view, at).y);
});

test("zoom has bounds", () => {
  assert.equal(zoomAt({ x: 0, y: 0, k: 1 }, { x: 0, y: 0 }, 1e9).k, 4);
  assert.equal(zoomAt({ x: 0, y: 0, k: 1 }, { x: 0, y: 0 }, 1e-9).k, 0.08);
});

test("wheelFactor is symmetric and tame", () => {
  const wheel = (deltaY: number, deltaMode = 0, ctrlKey = false) =>
    wheelFactor({ deltaY, deltaMode, ctrlKey });
  close(wheel(100) * wheel(-100), 1);
  assert.ok(wheel(-100) > 1);
  assert.equal(wheel(1e9), wheel(300));
  assert.equal(wheel(1, 1), wheel(16));
  assert.ok(wheel(-10, 0, true) > wheel(-10));
});

test("fit shows all of the bounds inside the inset", () => {
  const inset = { side: 50, top: 80, bottom: 40 };
  const bounds = { left: -1000, top: -100, right: 3000, bottom: 900 };
  const view = fit(bounds, size, inset);
  const [a, b] = [toScreen(view, { x: -1000, y: -100 }), toScreen(view, { x: 3000, y: 900 })];
  assert.ok(a.x >= 50 - 1e-9 && b.x <= 750 + 1e-9 && a.y >= 80 - 1e-9 && b.y <= 560 + 1e-9);
  close((a.x + b.x) / 2, 400);
});

test("fit enlarges only a little, also for a single node", () => {
  const view = fit({ left: 5, top: 5, right: 5, bottom: 5 }, size, { side: 0, top: 0, bottom: 0 });
  assert.equal(view.k, 2);
  assert.deepEqual(toScreen(view, { x: 5, y: 5 }), { x: 400, y: 300 });
});

test("reveal moves no more than needed", () => {
  const view = { x: 0, y: 0, k: 1 };
  assert.deepEqual(reveal(view, { x: 400, y: 300 }, size, 40), view);
  assert.deepEqual(toScreen(reveal(view, { x: 900, y: -10 }, size, 40), { x: 900, y: -10 }), {
    x: 760,
    y: 40,
  });
  assert.deepEqual(pan(view, 1, 2), { x: 1, y: 2, k: 1 });
});

test("arrow keys go to the nearest node on their side", () => {
  const points = new Map<string, Point>([
    ["middle", { x: 0, y: 0 }],
    ["right", { x: 100, y: 10 }],
    ["far right", { x: 300, y: 0 }],
    ["up", { x: -5, y: -80 }],
    ["corner", { x: 20, y: 120 }],
  ]);
  assert.equal(neighbourTowards(points, "middle", "right"), "right");
  assert.equal(neighbourTowards(points, "right", "right"), "far right");
  assert.equal(neighbourTowards(points, "middle", "up"), "up");
  assert.equal(neighbourTowards(points, "middle", "down"), "corner");
  // Nothing within the cone: still no node is out of reach.
  assert.equal(neighbourTowards(points, "middle", "left"), "up");
  assert.equal(neighbourTowards(points, "far right", "right"), undefined);
  assert.equal(neighbourTowards(points, "nobody", "right"), undefined);
});

test("every node can be reached by arrow keys", () => {
  const points = new Map<string, Point>(
    Array.from({ length: 60 }, (_, i) => [
      `n${i}`,
      { x: Math.cos(i * 2.4) * 20 * Math.sqrt(i), y: Math.sin(i * 2.4) * 20 * Math.sqrt(i) },
    ]),
  );
  const seen = new Set(["n0"]);
  for (const id of seen) {
    for (const direction of ["left", "right", "up", "down"] as const) {
      const next = neighbourTowards(points, id, direction);
      if (next !== undefined) {
        seen.add(next);
      }
    }
  }
  assert.equal(seen.size, 60);
});

test("arrowDirection knows four keys", () => {
  assert.equal(arrowDirection("ArrowLeft"), "left");
  assert.equal(arrowDirection("left"), undefined);
  assert.equal(arrowDirection("ArrowFunny"), undefined);
  assert.equal(arrowDirection("Enter"), undefined);
});

const wish = (id: string, x: number, y: number, priority = 0, wanted = true): LabelWish => ({
  id,
  text: id,
  point: { x, y },
  priority,
  wanted,
});
const plain = { x: 0, y: 0, k: 1 };

test("a label goes below its node when there is room", () => {
  const placed = placeLabels([wish("alone", 100, 100)], plain, 8, size);
  assert.deepEqual(placed.get("alone"), { x: 0, y: 23, anchor: "middle" });
});

test("a label gives way to a node below it", () => {
  const placed = placeLabels([wish("upper", 100, 100), wish("x", 100, 122, 0, false)], plain, 8, size);
  assert.ok((placed.get("upper")?.y ?? 99) < 0);
  assert.equal(placed.has("x"), false);
});

test("a label keeps clear of the lines of its node", () => {
  const at = { x: 400, y: 300 };
  const place = (...ends: Point[]) =>
    placeLabels([wish("phone", at.x, at.y)], plain, 8, size, new Map([["phone", ends]])).get("phone");
  const [up, down] = [
    { x: 400, y: 100 },
    { x: 400, y: 500 },
  ];
  const [left, right] = [
    { x: 200, y: 300 },
    { x: 600, y: 300 },
  ];
  assert.deepEqual(place(), { x: 0, y: 23, anchor: "middle" });
  assert.deepEqual(place(up), { x: 0, y: 23, anchor: "middle" });
  assert.deepEqual(place(left, right), { x: 0, y: 23, anchor: "middle" });
  assert.ok((place(down)?.y ?? 99) < 0);
  assert.ok((place({ x: 410, y: 500 })?.y ?? 99) < 0, "a line that is not quite straight");
  assert.equal(place(up, down)?.anchor, "start");
  assert.equal(place(up, down, right)?.anchor, "end");
  assert.deepEqual(
    place(up, down, left, right),
    { x: 0, y: 23, anchor: "middle" },
    "rather crossed than nowhere",
  );
  assert.deepEqual(place(at), { x: 0, y: 23, anchor: "middle" }, "a line of no length");
});

test("lineEnds has both ends of a line, and none of a node without a place", () => {
  const positions = new Map<string, Point>([
    ["a", { x: 0, y: 0 }],
    ["b", { x: 9, y: 9 }],
  ]);
  const ends = lineEnds([line("a", "b", "online"), line("a", "ghost", "online")], positions);
  assert.deepEqual(
    [...ends],
    [
      ["a", [{ x: 9, y: 9 }]],
      ["b", [{ x: 0, y: 0 }]],
    ],
  );
});

test("of two labels in one place the more important one is shown", () => {
  const crowd = Array.from({ length: 40 }, (_, i) =>
    wish(`crowded-${i}`, 100 + (i % 7) * 3, 100 + i * 2, i === 7 ? 5 : 0),
  );
  const placed = placeLabels(crowd, plain, 8, size);
  assert.ok(placed.size < 40);
  assert.ok(placed.has("crowded-7"));
});

test("a label is not cut off at the side", () => {
  const placed = placeLabels([wish("a-rather-long-name", 795, 100)], plain, 8, size);
  assert.equal(placed.get("a-rather-long-name")?.anchor, "end");
});

test("placeLabels gives the same answer each time", () => {
  const wishes = Array.from({ length: 200 }, (_, i) => wish(`node-${i}`, (i * 37) % 800, (i * 53) % 600));
  assert.deepEqual(placeLabels(wishes, plain, 8, size), placeLabels(wishes, plain, 8, size));
});

test("shorten counts characters, not code units", () => {
  assert.equal(shorten("web-1"), "web-1");
  assert.equal([...shorten("🦊".repeat(50))].length, maxLabelLength);
  assert.ok(shorten("🦊".repeat(50)).endsWith("🦊…"));
});

const line = (source: string, target: string, state: EdgeState, weight = 1): EdgeModel => ({
  key: `${source}-${target}`,
  source,
  target,
  weight,
  transport: "wireguard",
  state,
});

test("edgePaths draws each state apart and leaves out what has no place", () => {
  const positions = new Map<string, Point>([
    ["a", { x: 0, y: 0 }],
    ["b", { x: 10.04, y: 0 }],
    ["c", { x: 0, y: 20 }],
  ]);
  const edges = [
    line("a", "b", "online"),
    line("a", "c", "down"),
    line("b", "c", "online"),
    line("a", "ghost", "online"),
  ];
  const paths = edgePaths(edges, positions, "a");
  assert.deepEqual(paths.online, { all: "M10 0L0 20", own: "M0 0L10 0" });
  assert.deepEqual(paths.down, { all: "", own: "M0 0L0 20" });
  assert.deepEqual(paths.relayed, { all: "", own: "" });
});

test("drawnEdges keeps what is known and cheap", () => {
  const edges = [line("a", "b", "unknown", 99), line("a", "c", "unknown", 1), line("a", "d", "down", 99)];
  assert.equal(drawnEdges(edges, 3), edges);
  assert.deepEqual(
    drawnEdges(edges, 2).map(({ target }) => target),
    ["d", "c"],
  );
});
