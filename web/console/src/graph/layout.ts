// SPDX-License-Identifier: Apache-2.0

import {
  forceCollide,
  forceLink,
  forceManyBody,
  forceSimulation,
  forceX,
  forceY,
  type Simulation,
  type SimulationLinkDatum,
  type SimulationNodeDatum,
} from "d3-force";
import type { Bounds, Point } from "./viewport.ts";

interface Body extends SimulationNodeDatum {
  readonly id: string;
  x: number;
  y: number;
}

export interface LayoutEdge {
  readonly source: string;
  readonly target: string;
}

/** At most this share of new nodes is fitted in around the others, which stay where they are. */
const calmShare = 0.25;

/**
 * Places nodes on a plane. Calm by design: a node that has a place keeps it.
 * Changes of state move nothing; a few new nodes settle beside their neighbours
 * while all others are held; only a mesh that is largely new is arranged afresh.
 * The same mesh gets the same layout each time: nothing in it is random.
 */
export interface Layout {
  /** Tells which nodes and edges there are. True when something has to move. */
  update(ids: readonly string[], edges: readonly LayoutEdge[]): boolean;
  /** Moves one step. False once settled. */
  step(): boolean;
  /** Forgets all places and begins again. */
  arrange(): void;
  positions(): Map<string, Point>;
  bounds(): Bounds | undefined;
}

export function createLayout(): Layout {
  let bodies = new Map<string, Body>();
  let edges: LayoutEdge[] = [];
  let edgeKey = "";
  let held: Body[] = [];
  const links = forceLink<Body, SimulationLinkDatum<Body>>([])
    .id((body) => body.id)
    .distance(76)
    .iterations(2);
  const simulation: Simulation<Body, SimulationLinkDatum<Body>> = forceSimulation<Body>([])
    .force("link", links)
    .force("charge", forceManyBody<Body>().strength(-260).distanceMax(700).theta(1))
    .force("collide", forceCollide<Body>(22))
    // A pull to the middle keeps parts that are not connected in sight.
    .force("x", forceX<Body>(0).strength(0.035))
    .force("y", forceY<Body>(0).strength(0.05))
    .alphaMin(0.01)
    .stop();

  const release = (): void => {
    for (const body of held) {
      body.fx = null;
      body.fy = null;
    }
    held = [];
  };

  const load = (): void => {
    simulation.nodes([...bodies.values()]);
    links.links(edges.map((edge) => ({ source: edge.source, target: edge.target })));
  };

  return {
    update(ids, wanted) {
      const known = new Set(ids);
      const inside = wanted.filter((edge) => known.has(edge.source) && known.has(edge.target));
      const key = inside
        .map((edge) => JSON.stringify([edge.source, edge.target]))
        .sort()
        .join();
      const fresh = ids.filter((id) => !bodies.has(id));
      const gone = [...bodies.keys()].some((id) => !known.has(id));
      if (fresh.length === 0 && !gone && key === edgeKey) {
        return false;
      }
      release();
      edges = inside;
      edgeKey = key;
      const places = placeNew(fresh, inside, bodies);
      const next = ids.map((id): [string, Body] => [
        id,
        bodies.get(id) ?? { id, ...(places.get(id) ?? { x: 0, y: 0 }) },
      ]);
      const old = bodies;
      bodies = new Map(next);
      load();
      if (fresh.length === 0) {
        return false;
      }
      const calm = fresh.length <= ids.length * calmShare;
      if (calm) {
        held = [...bodies.values()].filter((body) => old.has(body.id));
        for (const body of held) {
          body.fx = body.x;
          body.fy = body.y;
        }
      }
      simulation.alpha(calm ? 0.3 : 1).alphaDecay(calm ? 0.06 : decay(ids.length));
      return true;
    },
    step() {
      if (simulation.alpha() < simulation.alphaMin()) {
        release();
        return false;
      }
      simulation.tick();
      return true;
    },
    arrange() {
      release();
      const ids = [...bodies.keys()];
      const places = placeNew(ids, edges, new Map());
      bodies = new Map(ids.map((id) => [id, { id, ...(places.get(id) ?? { x: 0, y: 0 }) }]));
      load();
      simulation.alpha(1).alphaDecay(decay(ids.length));
    },
    positions() {
      return new Map([...bodies].map(([id, body]) => [id, { x: body.x, y: body.y }]));
    },
    bounds() {
      const all = [...bodies.values()];
      if (all.length === 0) {
        return undefined;
      }
      const xs = all.map((body) => body.x);
      const ys = all.map((body) => body.y);
      return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
    },
  };
}

/** Large meshes settle in fewer steps, each of which costs more. */
function decay(nodes: number): number {
  return nodes > 200 ? 0.04 : 0.023;
}

/** The golden angle spreads points evenly, whatever their number. */
const golden = Math.PI * (3 - Math.sqrt(5));

/** First places of new nodes: beside a placed neighbour, else on a spiral around the middle. */
function placeNew(
  fresh: readonly string[],
  edges: readonly LayoutEdge[],
  placed: ReadonlyMap<string, Point>,
): Map<string, Point> {
  const anchors = new Map<string, Point>();
  for (const { source, target } of edges) {
    const [a, b] = [placed.get(source), placed.get(target)];
    if (a !== undefined && b === undefined) {
      anchors.set(target, a);
    } else if (b !== undefined && a === undefined) {
      anchors.set(source, b);
    }
  }
  return new Map(
    fresh.map((id, i) => {
      const anchor = anchors.get(id);
      const radius = anchor === undefined ? 14 * Math.sqrt(i + 0.5) : 40;
      const centre = anchor ?? { x: 0, y: 0 };
      return [
        id,
        { x: centre.x + radius * Math.cos(i * golden), y: centre.y + radius * Math.sin(i * golden) },
      ];
    }),
  );
}
