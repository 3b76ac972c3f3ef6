// SPDX-License-Identifier: Apache-2.0

import { createLayout, type LayoutEdge } from "./layout.ts";
import { fit, type Point, pan, reveal, type Size, type Viewport, zoomAt } from "./viewport.ts";

/** Room for the summary above, for names at the sides and below. */
const inset = { side: 56, top: 84, bottom: 48 };
/** Steps before the first picture: enough that what follows is a gentle settling. */
const firstSteps = 120;
/** Milliseconds of layout work per frame. */
const frameBudget = 4;
/** Milliseconds without a gesture after which the view rests. */
const restAfter = 120;

/**
 * The moving parts of the map: places of nodes, and what part of the plane is
 * seen. Until somebody moves the view it follows the mesh, afterwards it stays.
 */
export class Scene {
  view = $state.raw<Viewport>({ x: 0, y: 0, k: 1 });
  positions = $state.raw<ReadonlyMap<string, Point>>(new Map());
  /** False once nodes have come to rest on the screen. */
  moving = $state(true);
  /** False while nodes move or somebody moves the view. */
  resting = $derived.by(() => !this.moving && !this.#handled);
  #handled = $state(false);
  #restTimer: ReturnType<typeof setTimeout> | undefined;
  #size: Size = { width: 0, height: 0 };
  #layout = createLayout();
  #touched = false;
  #frame = 0;
  #calm: boolean;

  /** calm: nothing moves on the screen, as for people who asked for reduced motion. */
  constructor(calm: boolean) {
    this.#calm = calm;
  }

  resize(size: Size): void {
    this.#size = size;
    this.#follow();
  }

  update(ids: readonly string[], edges: readonly LayoutEdge[]): void {
    const first = this.positions.size === 0;
    const moves = this.#layout.update(ids, edges);
    if (moves && first) {
      this.#advance(firstSteps);
    }
    if (moves) {
      this.#run();
    }
    this.#publish();
  }

  /** Places all nodes anew and shows all of them. */
  arrange(): void {
    this.#layout.arrange();
    this.#touched = false;
    this.#run();
  }

  /** Shows the whole mesh. */
  fit(): void {
    this.#touched = false;
    this.#follow();
  }

  pan(dx: number, dy: number): void {
    this.#touch();
    this.view = pan(this.view, dx, dy);
  }

  zoom(at: Point, factor: number): void {
    this.#touch();
    this.view = zoomAt(this.view, at, factor);
  }

  zoomCentre(factor: number): void {
    this.zoom({ x: this.#size.width / 2, y: this.#size.height / 2 }, factor);
  }

  /** Brings a node into the picture, when it is not. */
  reveal(id: string): void {
    const point = this.positions.get(id);
    if (point !== undefined) {
      this.view = reveal(this.view, point, this.#size, 40);
    }
  }

  /** The map is on the screen: what was still moving goes on. Returns how to stop. */
  start(): () => void {
    this.#run();
    return () => {
      cancelAnimationFrame(this.#frame);
      clearTimeout(this.#restTimer);
      this.moving = true;
      this.#handled = false;
    };
  }

  #touch(): void {
    this.#touched = true;
    this.#handled = true;
    clearTimeout(this.#restTimer);
    this.#restTimer = setTimeout(() => {
      this.#handled = false;
    }, restAfter);
  }

  #run(): void {
    cancelAnimationFrame(this.#frame);
    if (this.#calm) {
      this.#advance(Number.POSITIVE_INFINITY);
      this.moving = false;
      this.#publish();
      return;
    }
    this.moving = true;
    const frame = (): void => {
      const until = performance.now() + frameBudget;
      let more = true;
      do {
        more = this.#layout.step();
      } while (more && performance.now() < until);
      this.#publish();
      this.moving = more;
      if (more) {
        this.#frame = requestAnimationFrame(frame);
      }
    };
    this.#frame = requestAnimationFrame(frame);
  }

  #advance(steps: number): void {
    for (let i = 0; i < steps && this.#layout.step(); i++);
  }

  #publish(): void {
    this.positions = this.#layout.positions();
    this.#follow();
  }

  #follow(): void {
    const bounds = this.#layout.bounds();
    if (!this.#touched && bounds !== undefined && this.#size.width > 0) {
      this.view = fit(bounds, this.#size, inset);
    }
  }
}
