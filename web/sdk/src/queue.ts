// SPDX-License-Identifier: Apache-2.0

/**
 * A queue with one reader, who waits with `for await`. It is not bounded:
 * whoever pushes must know that the reader keeps up, or look at `length`.
 */
export class AsyncQueue<T> implements AsyncIterable<T> {
  readonly #values: T[] = [];
  #end: { error?: unknown } | undefined;
  #wake: (() => void) | undefined;

  /** How many values wait to be read. */
  get length(): number {
    return this.#values.length;
  }

  /** Adds a value; nothing happens once the queue has ended. */
  push(value: T): void {
    if (this.#end === undefined) {
      this.#values.push(value);
      this.#wake?.();
    }
  }

  /** Ends the queue after what is in it. Only the first end counts. */
  end(): void {
    this.#end ??= {};
    this.#wake?.();
  }

  /** Ends the queue with an error, after what is in it. Only the first end counts. */
  fail(error: unknown): void {
    this.#end ??= { error };
    this.#wake?.();
  }

  /** The next value, or undefined at the end. */
  async next(): Promise<T | undefined> {
    while (this.#values.length === 0) {
      if (this.#end !== undefined) {
        if ("error" in this.#end) {
          throw this.#end.error;
        }
        return undefined;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
    return this.#values.shift();
  }

  /** Reads until the end. */
  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, void> {
    for (let value = await this.next(); value !== undefined; value = await this.next()) {
      yield value;
    }
  }
}
