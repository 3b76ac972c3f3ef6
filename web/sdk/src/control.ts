// SPDX-License-Identifier: Apache-2.0

import { isMeshgateCode, MeshgateError } from "./error.js";

/** The name and version of what is spoken inside data channels. */
export const channelProtocol = "meshgate.1";

/** A control message: text, JSON, told apart by its type. */
export interface ControlMessage {
  readonly type: string;
  readonly [field: string]: unknown;
}

/** Reads a control message; undefined when it is none. */
export function parseControl(text: string): ControlMessage | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isControlMessage(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function isControlMessage(value: unknown): value is ControlMessage {
  return typeof value === "object" && value !== null && "type" in value && typeof value.type === "string";
}

/** The error that an `error` or `reset` message carries. */
export function controlError(message: ControlMessage): MeshgateError {
  const { code, message: text } = message;
  return new MeshgateError(
    isMeshgateCode(code) ? code : "unknown",
    typeof text === "string" && text !== "" ? text : "the node ended the connection without saying why",
  );
}
