// SPDX-License-Identifier: Apache-2.0

import type { Target } from "./backend.ts";
import { hostPort, label } from "./format.ts";
import type { NodeModel } from "./graph/model.ts";
import { isReached } from "./words.ts";

/** An error as a person needs it: what is wrong, what to do, and the words of the other side. */
export interface Problem {
  /** Code in snake case, as the gateway names it; "unknown" for all else. */
  readonly code: string;
  /** A whole sentence that says what happened. */
  readonly text: string;
  /** A whole sentence that says what to do next. */
  readonly next: string;
  /** A command that helps, to be copied; empty when none does. */
  readonly command: string;
  /** What the other side said; text from afar. Empty when it adds nothing. */
  readonly detail: string;
}

/** The code of an error of the client library; "unknown" for any other. */
export function errorCode(error: unknown): string {
  if (error instanceof Error && "code" in error && typeof error.code === "string") {
    return error.code;
  }
  return error instanceof DOMException && error.name === "AbortError" ? "canceled" : "unknown";
}

/** True when the error says no more than that somebody cancelled. */
export function isCanceled(error: unknown): boolean {
  return errorCode(error) === "canceled";
}

function detailOf(error: unknown): string {
  const message = error instanceof Error ? error.message : typeof error === "string" ? error : "";
  // Layers put the code in front, as "[code] " or "code: "; the sentence already says that.
  const code = errorCode(error).replaceAll("_", " ");
  const bare = message.replace(/^\[\w+\]\s*/, "");
  return label(bare.startsWith(`${code}: `) ? bare.slice(code.length + 2) : bare).slice(0, 500);
}

function problem(error: unknown, text: string, next: string, command = ""): Problem {
  return { code: errorCode(error), text, next, command, detail: detailOf(error) };
}

/** Shows the administrator's token, on the gateway and with its usual data directory. */
export const showToken = "sudo cat /var/lib/meshgate/admin.token";

/** What is wrong while no gateway leads. */
export const noLeader: Problem = {
  code: "unavailable",
  text: "No gateway leads: too few of those that vote are up, or they do not reach each other.",
  next: "What you see may be old, and nothing can be changed. This command on the gateway says which to start.",
  command: "sudo meshgate cluster status",
  detail: "",
};

/** Why signing in, or staying signed in, did not work. */
export function explainSignIn(error: unknown): Problem {
  switch (errorCode(error)) {
    case "unauthenticated":
      return problem(
        error,
        "The gateway does not accept this token.",
        "It may be mistyped or no longer valid. The administrator's token is in admin.token in the gateway's --data-dir, by default in this file.",
        showToken,
      );
    case "permission_denied":
      return problem(
        error,
        "This token is valid, but it does not allow to look at the mesh.",
        "Ask an administrator to bind a role to you that may get edges (meshgate put rolebindings).",
      );
    case "resource_exhausted":
      return problem(
        error,
        "There were too many attempts in a short time.",
        "Wait a minute, then try again.",
      );
    default:
      return problem(
        error,
        "The gateway does not answer.",
        "Check that this device is online and that the gateway runs, then try again.",
        "meshgate status",
      );
  }
}

/** Why the live view stopped. */
export function explainWatch(error: unknown): Problem {
  switch (errorCode(error)) {
    case "unauthenticated":
      return problem(
        error,
        "Your sign-in has ended, because the token is no longer accepted.",
        "Sign in with a new token.",
        showToken,
      );
    case "permission_denied":
      return problem(
        error,
        "You may no longer look at this mesh.",
        "Ask an administrator to restore your rights.",
      );
    default:
      return problem(
        error,
        "The gateway cannot be reached.",
        "What you see is the last known state; the console tries again by itself.",
      );
  }
}

/** Why a node does not tell its status. */
export function explainStatus(
  error: unknown,
  node: string,
  known: Partial<Pick<NodeModel, "stock" | "barred" | "reach">> = {},
): Problem {
  const name = label(node);
  if (known.barred !== undefined && !known.stock) {
    return problem(
      error,
      `${name} cannot be asked: the network ACLs let nothing pass between this gateway and it.`,
      "Ask an administrator for a network ACL that lets it, if it should be reached.",
    );
  }
  if (known.stock) {
    return problem(
      undefined,
      `${name} is a plain WireGuard peer, so it cannot report on itself.`,
      `Everything the gateway knows about it is shown above. What it offers can be reached ${isReached(known) ? "through the gateway" : "once its WireGuard runs"}.`,
    );
  }
  switch (errorCode(error)) {
    case "permission_denied":
      return problem(
        error,
        `You may not read the status of ${name}.`,
        "Ask an administrator for the right to do so.",
      );
    case "not_found":
      return problem(
        error,
        `The gateway does not know ${name}.`,
        "It may have left the mesh; look for it on the map.",
      );
    case "unimplemented":
      return problem(
        error,
        `${name} does not report its status.`,
        "It may run an older version; update it to see more.",
      );
    default:
      return problem(
        error,
        `${name} does not answer.`,
        "Check that it is switched on and online; the console asks again by itself.",
      );
  }
}

/** Why the gateways do not tell what they relay. */
export function explainRelays(error: unknown): Problem {
  switch (errorCode(error)) {
    case "permission_denied":
      return problem(
        error,
        "You may not see what the gateways relay.",
        "The list says where everybody is, so it takes a role that may read all of the mesh; ask an administrator for one.",
      );
    case "unimplemented":
      return problem(
        error,
        "This gateway does not tell what it relays.",
        "It may run an older version; update it to see more.",
      );
    default:
      return problem(error, "The gateways do not tell what they relay.", "The console asks again by itself.");
  }
}

/** A silent gateway, of which relays may be missing from a list. */
export function explainSilent(gateway: string, reason: string): Problem {
  const name = label(gateway);
  return problem(
    reason,
    `${name} does not answer: what it relays is missing here.`,
    "Check that it is up; the console asks again by itself.",
  );
}

/** A target in words: "port 22 of web-1", "10.0.0.5:22 through web-1". */
export function describeTarget(target: Target): string {
  const node = label(target.node);
  return target.host === ""
    ? `port ${target.port} of ${node}`
    : `${label(hostPort(target.host, target.port))} through ${node}`;
}

/** Why a connection that was open ended before its time. */
export function explainBreak(error: unknown, target: Target): Problem {
  return problem(
    error,
    `The connection to ${describeTarget(target)} broke off.`,
    "Connect again; if it keeps breaking, look at the path and at the node's state.",
  );
}

/** Why a connection could not be made. */
export function explainConnect(error: unknown, target: Target): Problem {
  const node = label(target.node);
  const there = describeTarget(target);
  switch (errorCode(error)) {
    case "permission_denied":
      // The node may expose it all the same: a role comes before that.
      if (error instanceof Error && error.message.includes("has no role")) {
        return problem(
          error,
          `No role lets you open connections to ${node}.`,
          "Ask an administrator to bind one to you that may put datachannels of this node (meshgate put rolebindings).",
        );
      }
      return problem(
        error,
        `The mesh does not let you reach ${there}.`,
        "Pick a service that the node exposes, or ask an administrator to open this one to you.",
      );
    case "unauthenticated":
      return problem(error, "Your sign-in has ended.", "Sign out, then sign in with a new token.", showToken);
    case "not_found":
      return problem(error, `${node} is not in the mesh.`, "It may have left; look for it on the map.");
    case "invalid_argument":
      return problem(error, `${there} is not an address to connect to.`, "Check the host and the port.");
    case "resource_exhausted":
      return problem(
        error,
        "There are too many open connections.",
        "Close one that you no longer need, then try again.",
      );
    case "deadline_exceeded":
      return problem(
        error,
        `No answer from ${there} in time.`,
        "The node may be down, or a firewall may drop the packets. Look at the node's state, then try again.",
      );
    case "unavailable":
      return problem(
        error,
        `Nothing answers at ${there}.`,
        "Check that the service runs and listens there, and that the node is online.",
      );
    case "canceled":
      return {
        ...problem(error, "You stopped this connection.", "Connect again when you are ready."),
        detail: "",
      };
    default:
      return problem(
        error,
        `The connection to ${there} failed.`,
        "Try again; if it keeps failing, look at the node's state on the map.",
      );
  }
}
