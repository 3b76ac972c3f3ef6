// SPDX-License-Identifier: Apache-2.0

import { Code, ConnectError } from "@connectrpc/connect";

/**
 * What went wrong, as a word that a program can switch on: the Connect code
 * names in snake case.
 *
 * - `canceled`: the caller aborted, or closed the connection or the client.
 * - `invalid_argument`: the call itself is wrong; repeating it does not help.
 * - `unauthenticated`: no token, or one that the gateway does not accept.
 * - `permission_denied`: no role, or no network ACL, allows it.
 * - `not_found`: no such node.
 * - `unavailable`: the gateway, the node or the service cannot be reached now.
 * - `deadline_exceeded`: it took too long.
 * - `resource_exhausted`: a limit was reached, here or there.
 * - `data_loss`: a response ended before it was complete.
 */
export type MeshgateCode =
  | "canceled"
  | "unknown"
  | "invalid_argument"
  | "deadline_exceeded"
  | "not_found"
  | "already_exists"
  | "permission_denied"
  | "resource_exhausted"
  | "failed_precondition"
  | "aborted"
  | "out_of_range"
  | "unimplemented"
  | "internal"
  | "unavailable"
  | "data_loss"
  | "unauthenticated";

const codeNames: Record<Code, MeshgateCode> = {
  [Code.Canceled]: "canceled",
  [Code.Unknown]: "unknown",
  [Code.InvalidArgument]: "invalid_argument",
  [Code.DeadlineExceeded]: "deadline_exceeded",
  [Code.NotFound]: "not_found",
  [Code.AlreadyExists]: "already_exists",
  [Code.PermissionDenied]: "permission_denied",
  [Code.ResourceExhausted]: "resource_exhausted",
  [Code.FailedPrecondition]: "failed_precondition",
  [Code.Aborted]: "aborted",
  [Code.OutOfRange]: "out_of_range",
  [Code.Unimplemented]: "unimplemented",
  [Code.Internal]: "internal",
  [Code.Unavailable]: "unavailable",
  [Code.DataLoss]: "data_loss",
  [Code.Unauthenticated]: "unauthenticated",
};

/**
 * The one error that this package throws, rejects with and passes on in
 * streams and events. `message` is a sentence for people and says what to do
 * next where that is known; `cause` is what lies underneath, if anything.
 */
export class MeshgateError extends Error {
  override readonly name = "MeshgateError";

  /** What went wrong, for programs. */
  readonly code: MeshgateCode;

  /** Makes an error; `cause` is kept as it is. */
  constructor(code: MeshgateCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }

  /**
   * Turns whatever was thrown into a MeshgateError. A MeshgateError is
   * returned as it is, an error of an RPC keeps its code, an abort becomes
   * `canceled`, a timeout `deadline_exceeded`, and anything else `unknown`.
   */
  static from(reason: unknown): MeshgateError {
    if (reason instanceof MeshgateError) {
      return reason;
    }
    if (reason instanceof ConnectError) {
      return fromConnectError(reason);
    }
    const name = reason instanceof Error || reason instanceof DOMException ? reason.name : "";
    const message = reason instanceof Error ? reason.message : String(reason);
    switch (name) {
      case "AbortError":
        return new MeshgateError("canceled", message || "the operation was aborted", { cause: reason });
      case "TimeoutError":
        return new MeshgateError("deadline_exceeded", message || "the operation took too long", {
          cause: reason,
        });
      default:
        return new MeshgateError("unknown", message, { cause: reason });
    }
  }
}

function fromConnectError(error: ConnectError): MeshgateError {
  // Connect wraps what it was aborted with, and what fetch failed with.
  if (error.cause instanceof MeshgateError) {
    return error.cause;
  }
  const timedOut = error.cause instanceof Error && error.cause.name === "TimeoutError";
  if (error.code === Code.Canceled && timedOut) {
    return new MeshgateError("deadline_exceeded", "the operation took too long", { cause: error });
  }
  if (fetchFailed(error)) {
    return new MeshgateError(
      "unavailable",
      "the gateway cannot be reached: check the address, the network, and that the gateway allows this page's " +
        "origin (--cors.origins)",
      { cause: error },
    );
  }
  return new MeshgateError(codeNames[error.code] ?? "unknown", error.rawMessage, { cause: error });
}

/** Whether fetch itself failed: it found nobody, or the browser kept the answer from the page. */
function fetchFailed(error: ConnectError): boolean {
  return error.cause instanceof TypeError && error.code !== Code.InvalidArgument;
}

/** Whether a call to the gateway got no answer that this page may see. */
export function isBlocked(error: MeshgateError): boolean {
  return error.cause instanceof ConnectError && fetchFailed(error.cause);
}

/** Whether a word from elsewhere is a code. */
export function isMeshgateCode(word: unknown): word is MeshgateCode {
  return Object.values<unknown>(codeNames).includes(word);
}

/** The error for an aborted signal: its reason, as a MeshgateError. */
export function abortError(signal: AbortSignal): MeshgateError {
  const reason: unknown = signal.reason;
  if (reason instanceof MeshgateError) {
    return reason;
  }
  const timedOut = reason instanceof Error && reason.name === "TimeoutError";
  return timedOut
    ? new MeshgateError("deadline_exceeded", "the operation took longer than the caller allowed", {
        cause: reason,
      })
    : new MeshgateError("canceled", "the operation was aborted by the caller", { cause: reason });
}

/** Whether the same call may succeed a moment later without anything being changed. */
export function isTransient(error: MeshgateError): boolean {
  return (
    error.code === "unavailable" ||
    error.code === "deadline_exceeded" ||
    error.code === "aborted" ||
    error.code === "resource_exhausted"
  );
}
