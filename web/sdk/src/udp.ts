// SPDX-License-Identifier: Apache-2.0

import { Channel } from "./channel.js";
import { type ControlMessage, controlError } from "./control.js";
import { MeshgateError } from "./error.js";
import type { MeshDatagrams } from "./types.js";

/** How long the reason for a refusal may take when the channel has already been closed. */
const reasonTimeoutMs = 2000;
/** What fits in a UDP datagram over IPv4. */
const maxDatagramBytes = 65_507;
/** How many bytes may wait to be read; further datagrams are dropped, */
const maxBacklogBytes = 1024 * 1024;
/** and how many datagrams. */
const maxBacklog = 4096;

/**
 * A UDP association in an unordered, unreliable data channel: one binary
 * message is one datagram. A text message could get lost here, so `open` and
 * `error` come over the control channel of the peer connection.
 */
export class UdpChannel extends Channel implements MeshDatagrams {
  #dropped = 0;
  #isOpen = false;

  get dropped(): number {
    return this.#dropped;
  }

  override control(message: ControlMessage): void {
    switch (message.type) {
      case "open":
        this.#isOpen = true;
        this.accept();
        break;
      case "error":
      case "reset":
        this.fail(controlError(message));
        break;
      default:
    }
  }

  protected override receive(data: Uint8Array<ArrayBuffer>): void {
    const { chunks, bytes } = this.backlog;
    if (chunks >= maxBacklog || bytes + data.byteLength > maxBacklogBytes) {
      this.#dropped++;
    } else {
      this.deliver(data);
    }
  }

  protected override consumed(): void {}

  protected override async sendData(data: Uint8Array<ArrayBuffer>): Promise<void> {
    if (data.byteLength > maxDatagramBytes) {
      throw new MeshgateError("invalid_argument", `a datagram holds at most ${maxDatagramBytes} bytes`);
    }
    await this.sendable();
    this.dc.send(data);
  }

  protected override endWriting(): void {}

  protected override closeGently(): void {
    this.finish();
  }

  protected override isComplete(): boolean {
    return this.#isOpen;
  }

  /** The reason comes over the control channel, which is not in step with this one. */
  protected override closedEarly(error: MeshgateError): void {
    this.endAfter(reasonTimeoutMs, () => this.fail(error));
  }
}
