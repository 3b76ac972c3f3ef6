// SPDX-License-Identifier: Apache-2.0

import { MeshgateError } from "../error.js";

/** The error for a response that cannot be understood in exactly one way. */
export function malformed(why: string): MeshgateError {
  return new MeshgateError("internal", `the service's answer is not valid HTTP/1.1: ${why}`);
}

/** The error for a response that ends too early. */
export function truncated(what: string): MeshgateError {
  return new MeshgateError("data_loss", `the service closed the connection in the middle of ${what}`);
}
