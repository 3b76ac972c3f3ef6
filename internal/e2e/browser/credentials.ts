// SPDX-License-Identifier: Apache-2.0

// Credentials of an application that shares a secret with the gateway, as docs/turn.md
// has it.

import { createHmac, randomBytes } from "node:crypto";

/** A new secret, for --turn.secret-file. */
export function makeSecret(): string {
  return randomBytes(32).toString("base64");
}

/** A TURN server by its URL, with a credential for a user that is good for an hour. */
export function mint(secret: string, urls: string, user: string): RTCIceServer {
  const username = `${Math.floor(Date.now() / 1000) + 3600}:${user}`;
  return { urls, username, credential: createHmac("sha1", secret).update(username).digest("base64") };
}
