// SPDX-License-Identifier: Apache-2.0

/** An error as the client library throws it. */
export class FakeError extends Error {
  readonly code: string;
  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}
