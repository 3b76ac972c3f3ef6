// SPDX-License-Identifier: Apache-2.0

/** An EventTarget that knows the types of its events. */
export interface TypedEventTarget<Events> {
  /** Calls `listener` for each event of the type. */
  addEventListener<K extends keyof Events & string>(
    type: K,
    listener: (event: Events[K]) => void,
    options?: AddEventListenerOptions | boolean,
  ): void;

  /** Undoes {@link TypedEventTarget.addEventListener}. */
  removeEventListener<K extends keyof Events & string>(
    type: K,
    listener: (event: Events[K]) => void,
    options?: EventListenerOptions | boolean,
  ): void;

  /** Calls the listeners for an event, as {@link EventTarget.dispatchEvent} does. */
  dispatchEvent(event: Event): boolean;
}

/** The class EventTarget, with typed events. */
export function typedEventTarget<Events>(): new () => TypedEventTarget<Events> {
  return EventTarget as new () => TypedEventTarget<Events>;
}
