// SPDX-License-Identifier: Apache-2.0

import type { Attachment } from "svelte/attachments";
import { type Point, wheelFactor } from "./viewport.ts";

export interface GestureHandlers {
  pan(dx: number, dy: number): void;
  zoom(at: Point, factor: number): void;
}

/** A press that moves less than this is a click. */
const slop = 4;

/**
 * Turns drag, pinch and wheel on an element into pan and zoom. A click on a
 * link inside still works, but a drag that ends on one does not follow it.
 */
export function gestures(handlers: GestureHandlers): Attachment<SVGSVGElement> {
  return (element) => {
    const pointers = new Map<number, Point>();
    const off = new AbortController();
    const options = { signal: off.signal };
    let travelled = 0;

    const local = (event: MouseEvent): Point => {
      const box = element.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const down = (event: PointerEvent): void => {
      if (event.button !== 0) {
        return;
      }
      if (pointers.size === 0) {
        travelled = 0;
      }
      pointers.set(event.pointerId, local(event));
    };
    const move = (event: PointerEvent): void => {
      const before = pointers.get(event.pointerId);
      if (before === undefined) {
        return;
      }
      const now = local(event);
      const others = [...pointers].filter(([id]) => id !== event.pointerId);
      pointers.set(event.pointerId, now);
      travelled += Math.hypot(now.x - before.x, now.y - before.y);
      const other = others[0]?.[1];
      if (travelled < slop) {
        return;
      }
      // Only a drag captures: a captured pointer would take the click from the link.
      if (!element.hasPointerCapture(event.pointerId)) {
        element.setPointerCapture(event.pointerId);
      }
      if (other === undefined) {
        handlers.pan(now.x - before.x, now.y - before.y);
      } else {
        const was = Math.hypot(before.x - other.x, before.y - other.y);
        const is = Math.hypot(now.x - other.x, now.y - other.y);
        handlers.zoom({ x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 }, is / Math.max(1, was));
      }
    };
    const up = (event: PointerEvent): void => {
      pointers.delete(event.pointerId);
    };
    const click = (event: MouseEvent): void => {
      if (travelled >= slop && event.detail > 0) {
        event.preventDefault();
        event.stopPropagation();
      }
    };
    const wheel = (event: WheelEvent): void => {
      event.preventDefault();
      handlers.zoom(local(event), wheelFactor(event));
    };
    element.addEventListener("pointerdown", down, options);
    element.addEventListener("pointermove", move, options);
    element.addEventListener("pointerup", up, options);
    element.addEventListener("pointercancel", up, options);
    element.addEventListener("click", click, { ...options, capture: true });
    element.addEventListener("dragstart", (event) => event.preventDefault(), options);
    element.addEventListener("wheel", wheel, { ...options, passive: false });
    return () => off.abort();
  };
}
