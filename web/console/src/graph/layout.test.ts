// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { createLayout, type Layout, type LayoutEdge } from "./layout.ts";
import type { Point } from "./viewport.ts";

const star = (n: number): { ids: string[]; edges: LayoutEdge[] } => {
  const ids = Array.from({ length: n }, (_, i) => `n${i}`);
  return { ids, edges: ids.slice(1).map((id) => ({ source: "n0", target: id })) };
};

function settle(layout: Layout): number {
  let steps = 0;
  while (layout.step()) {
    steps++;
    assert.ok(steps < 1000, "the layout does not settle");
  }
  return steps;
}

const at = (positions: Map<string, Point>, id: string): Point => {
  const point = positions.get(id);
  assert.ok(point, id);
  return point;
};
const distance = (a: Point, b: Point): number => Math.hypot(a.x - b.x, a.y - b.y);

test("a layout settles with nodes apart", () => {
  const { ids, edges } = star(30);
  const layout = createLayout();
  assert.equal(layout.update(ids, edges), true);
  settle(layout);
  const points = [...layout.positions().values()];
  assert.equal(points.length, 30);
  for (const [i, a] of points.entries()) {
    assert.ok(Number.isFinite(a.x) && Number.isFinite(a.y));
    for (const b of points.slice(i + 1)) {
      assert.ok(distance(a, b) > 20, "two nodes lie on each other");
    }
  }
});

test("the same mesh gets the same layout", () => {
  const { ids, edges } = star(12);
  const [one, two] = [createLayout(), createLayout()];
  for (const layout of [one, two]) {
    layout.update(ids, edges);
    settle(layout);
  }
  assert.deepEqual(one.positions(), two.positions());
});

test("an update without new nodes or edges moves nothing", () => {
  const { ids, edges } = star(12);
  const layout = createLayout();
  layout.update(ids, edges);
  settle(layout);
  const before = layout.positions();
  assert.equal(layout.update([...ids].reverse(), [...edges].reverse()), false);
  assert.equal(settle(layout), 0);
  assert.deepEqual(layout.positions(), before);
});

test("a few new nodes settle beside their neighbours while all others stay", () => {
  const { ids, edges } = star(20);
  const layout = createLayout();
  layout.update(ids, edges);
  settle(layout);
  const before = layout.positions();
  assert.equal(layout.update([...ids, "new"], [...edges, { source: "n5", target: "new" }]), true);
  settle(layout);
  const after = layout.positions();
  for (const id of ids) {
    assert.deepEqual(at(after, id), at(before, id), id);
  }
  assert.ok(distance(at(after, "new"), at(after, "n5")) < 250);
});

test("a removed node leaves all others where they are", () => {
  const { ids, edges } = star(20);
  const layout = createLayout();
  layout.update(ids, edges);
  settle(layout);
  const before = layout.positions();
  assert.equal(layout.update(ids.slice(0, 19), edges), false);
  before.delete("n19");
  assert.deepEqual(layout.positions(), before);
});

test("a removed node that comes back before the layout settled is placed again", () => {
  const { ids, edges } = star(20);
  const layout = createLayout();
  layout.update(ids, edges);
  layout.step();
  layout.update(ids.slice(0, 10), edges);
  layout.update(ids, edges);
  settle(layout);
  assert.equal(layout.positions().size, 20);
});

test("a largely new mesh is arranged afresh", () => {
  const layout = createLayout();
  layout.update(["n0"], []);
  settle(layout);
  const { ids, edges } = star(30);
  layout.update(ids, edges);
  settle(layout);
  const positions = layout.positions();
  const ring = ids.slice(1).map((id) => at(positions, id));
  assert.ok(ring.some(({ x }) => x > 20) && ring.some(({ x }) => x < -20), "the star is not spread out");
});

test("arrange forgets all places", () => {
  const { ids, edges } = star(12);
  const [one, two] = [createLayout(), createLayout()];
  one.update(ids, edges);
  settle(one);
  two.update(ids.slice(0, 11), edges);
  settle(two);
  two.update(ids, edges);
  settle(two);
  two.arrange();
  settle(two);
  assert.deepEqual(two.positions(), one.positions());
});

test("edges to unknown nodes are ignored and bounds hold every node", () => {
  const layout = createLayout();
  assert.equal(layout.bounds(), undefined);
  layout.update(["a", "b"], [{ source: "a", target: "ghost" }]);
  settle(layout);
  const bounds = layout.bounds();
  assert.ok(bounds);
  for (const { x, y } of layout.positions().values()) {
    assert.ok(x >= bounds.left && x <= bounds.right && y >= bounds.top && y <= bounds.bottom);
  }
});

test("500 nodes settle", () => {
  const { ids, edges } = star(500);
  const layout = createLayout();
  layout.update(ids, edges);
  assert.ok(settle(layout) < 200);
});
