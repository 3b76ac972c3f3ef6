// SPDX-License-Identifier: Apache-2.0

export interface Point {
  readonly x: number;
  readonly y: number;
}

export interface Size {
  readonly width: number;
  readonly height: number;
}

export interface Bounds {
  readonly left: number;
  readonly top: number;
  readonly right: number;
  readonly bottom: number;
}

/** A view of the plane: screen = plane * k + (x, y). */
export interface Viewport {
  readonly x: number;
  readonly y: number;
  readonly k: number;
}

const minScale = 0.08;
const maxScale = 4;

export function toScreen(view: Viewport, point: Point): Point {
  return { x: point.x * view.k + view.x, y: point.y * view.k + view.y };
}

export function toPlane(view: Viewport, point: Point): Point {
  return { x: (point.x - view.x) / view.k, y: (point.y - view.y) / view.k };
}

export function pan(view: Viewport, dx: number, dy: number): Viewport {
  return { ...view, x: view.x + dx, y: view.y + dy };
}

/** Zooms by factor so that the plane point under the screen point stays there. */
export function zoomAt(view: Viewport, at: Point, factor: number): Viewport {
  const k = Math.min(maxScale, Math.max(minScale, view.k * factor));
  const fixed = toPlane(view, at);
  return { k, x: at.x - fixed.x * k, y: at.y - fixed.y * k };
}

/** The factor of one wheel event, the same for mice, trackpads and pinch gestures. */
export function wheelFactor(event: { deltaY: number; deltaMode: number; ctrlKey: boolean }): number {
  const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1);
  const speed = event.ctrlKey ? 0.01 : 0.0018;
  return Math.exp(-Math.max(-300, Math.min(300, pixels)) * speed);
}

/** Space to keep free at each side. */
export interface Inset {
  readonly side: number;
  readonly top: number;
  readonly bottom: number;
}

/** Shows all of bounds, centred inside the inset; enlarged only a little. */
export function fit(bounds: Bounds, size: Size, inset: Inset): Viewport {
  const width = Math.max(1, bounds.right - bounds.left);
  const height = Math.max(1, bounds.bottom - bounds.top);
  const across = Math.max(1, size.width - 2 * inset.side);
  const down = Math.max(1, size.height - inset.top - inset.bottom);
  const k = Math.max(minScale, Math.min(2, across / width, down / height));
  return {
    k,
    x: size.width / 2 - ((bounds.left + bounds.right) / 2) * k,
    y: inset.top + down / 2 - ((bounds.top + bounds.bottom) / 2) * k,
  };
}

/** Moves the view as little as needed to have the point inside, margin away from the border. */
export function reveal(view: Viewport, point: Point, size: Size, margin: number): Viewport {
  const at = toScreen(view, point);
  const shift = (value: number, length: number): number =>
    value < margin ? margin - value : value > length - margin ? length - margin - value : 0;
  return pan(view, shift(at.x, size.width), shift(at.y, size.height));
}
