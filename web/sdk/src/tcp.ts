// SPDX-License-Identifier: Apache-2.0

import { Channel, maxMessageBytes } from "./channel.js";
import { type ControlMessage, controlError } from "./control.js";
import { MeshgateError } from "./error.js";
import type { MeshConnection } from "./types.js";

/** How much either side may have sent without the other's application having read it. */
export const windowBytes = 1024 * 1024;
/** How much the application has to have read before the sender is told. */
const updateBytes = 256 * 1024;

/**
 * A TCP connection in a data channel: data in binary messages, with credit in
 * each direction, so that a slow reader slows its writer and nobody's memory
 * fills. A direction ends with `fin`; when both have, the other side closes.
 */
export class TcpChannel extends Channel implements MeshConnection {
  /** How many bytes we may still send. */
  #credit = windowBytes;
  /** How many bytes came for which no credit was given back. */
  #outstanding = 0;
  /** How many of those the application has taken. */
  #consumed = 0;
  #sentFin = false;
  #gotFin = false;

  override control(message: ControlMessage): void {
    switch (message.type) {
      case "open":
        // The first credit is agreed on; the other side may give more, or less.
        this.#grant(message.window, -windowBytes);
        this.accept();
        break;
      case "window":
        this.#grant(message.bytes, 0);
        break;
      case "fin":
        this.#gotFin = true;
        this.endReading();
        this.#afterFin();
        break;
      case "error":
      case "reset":
        this.fail(controlError(message));
        break;
      default:
      // A later version of the protocol; what matters is said in known words, too.
    }
  }

  protected override receive(data: Uint8Array<ArrayBuffer>): void {
    this.#outstanding += data.byteLength;
    if (this.#gotFin || this.#outstanding > windowBytes) {
      const what = this.#gotFin ? "after it said that it was done" : "than it was given credit for";
      this.reset(new MeshgateError("internal", `the node sent more data ${what}`));
      return;
    }
    if (data.byteLength > 0) {
      this.deliver(data);
    }
  }

  protected override consumed(bytes: number): void {
    this.#consumed += bytes;
    if (this.#consumed >= updateBytes && !this.#gotFin) {
      this.send({ type: "window", bytes: this.#consumed });
      this.#outstanding -= this.#consumed;
      this.#consumed = 0;
    }
  }

  protected override async sendData(data: Uint8Array<ArrayBuffer>): Promise<void> {
    for (let offset = 0; offset < data.byteLength; ) {
      await this.sendable();
      const end = Math.min(data.byteLength, offset + Math.min(maxMessageBytes, this.#credit));
      this.dc.send(data.subarray(offset, end));
      this.#credit -= end - offset;
      offset = end;
    }
  }

  protected override canSend(): boolean {
    return this.#credit > 0 && super.canSend();
  }

  protected override endWriting(): void {
    if (!this.#sentFin) {
      this.#sentFin = true;
      this.send({ type: "fin" });
      this.#afterFin();
    }
  }

  protected override closeGently(): void {
    this.endWriting();
    this.expectClose();
  }

  protected override isComplete(): boolean {
    return this.closing || (this.#sentFin && this.#gotFin);
  }

  #grant(bytes: unknown, plus: number): void {
    if (bytes === undefined && plus !== 0) {
      return;
    }
    if (typeof bytes !== "number" || !Number.isSafeInteger(bytes) || bytes < 0) {
      this.reset(new MeshgateError("internal", "the node gave credit that is not a number of bytes"));
      return;
    }
    this.#credit += bytes + plus;
    this.wakeWriter();
  }

  /** After both have said that they are done, the other side closes. */
  #afterFin(): void {
    if (this.#sentFin && this.#gotFin) {
      this.expectClose();
    }
  }
}
