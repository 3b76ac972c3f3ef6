// SPDX-License-Identifier: Apache-2.0

import type { Connection, HttpRequest, Path, Target } from "../backend.ts";
import { FakeError } from "./fakeerror.ts";

/** What listens on each port of each invented node. Everything else refuses. */
const ports: Record<number, "echo" | "ssh" | "http"> = { 7: "echo", 22: "ssh", 80: "http" };

/** Opens a TCP connection to what listens on the port. Port 25 is denied, port 9 breaks after the first bytes. */
export function openFakeService(target: Target, path: () => Path): Connection {
  const kind = target.port === 9 ? "breaks" : ports[target.port];
  if (target.port === 25) {
    throw new FakeError("permission_denied", "no network ACL accepts tcp port 25");
  }
  if (kind === undefined) {
    throw new FakeError(
      "unavailable",
      `dial tcp ${target.host || target.node}:${target.port}: connection refused`,
    );
  }
  let settle: (error?: Error) => void = () => undefined;
  const closed = new Promise<void>((resolve, reject) => {
    settle = (error) => (error === undefined ? resolve() : reject(error));
  });
  closed.catch(() => undefined);
  let out: ReadableStreamDefaultController<Uint8Array> | undefined;
  let ended = false;
  const end = (error?: Error): void => {
    if (ended) {
      return;
    }
    ended = true;
    if (error === undefined) {
      out?.close();
    } else {
      out?.error(error);
    }
    settle(error);
  };
  const say = (text: string): void => out?.enqueue(new TextEncoder().encode(text));
  const readable = new ReadableStream<Uint8Array>({
    start(controller) {
      out = controller;
      if (kind === "ssh") {
        say("SSH-2.0-OpenSSH_9.6 Debian-3\r\n");
      }
    },
  });
  const writable = new WritableStream<Uint8Array>({
    write(chunk) {
      if (kind === "echo") {
        out?.enqueue(chunk.slice());
      } else if (kind === "breaks") {
        end(new FakeError("unavailable", "connection reset by peer"));
      } else if (kind === "http") {
        say("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
        end();
      }
    },
    close: () => end(),
    abort: () => end(),
  });
  return {
    readable,
    writable,
    closed,
    async close() {
      end();
    },
    path: async () => path(),
  };
}

const page = (node: string): string => `<!doctype html>
<title>${node}</title>
<h1>It works</h1>
<p>This page is served by <b>${node}</b>.</p>
<ul><li><a href="/about">About</a></li><li><a href="https://example.org/">Elsewhere</a></li></ul>
<script>parent.document.title = "pwned"; alert("script ran")</script>
<img src="/icon.png" onerror="alert('handler ran')">
<form action="/login" method="post"><input name="password"><button>Log in</button></form>
`;

/** Answers like a small web server; port 80 only. */
export function fakeFetch(target: Target, request: HttpRequest): Response {
  if (target.port !== 80) {
    throw new FakeError(
      "unavailable",
      `dial tcp ${target.host || target.node}:${target.port}: connection refused`,
    );
  }
  const text = (type: string, body: string, status = 200): Response =>
    new Response(request.method === "HEAD" ? null : body, {
      status,
      headers: { "content-type": type, server: "fake/1.0" },
    });
  switch (request.path) {
    case "/":
      return text("text/html; charset=utf-8", page(target.node));
    case "/json":
      return text(
        "application/json",
        JSON.stringify({ method: request.method, body: request.body ?? null, headers: request.headers }),
      );
    case "/binary":
      return new Response(
        Uint8Array.from({ length: 600 }, (_, i) => i % 256),
        { headers: { "content-type": "application/octet-stream" } },
      );
    case "/moved":
      return new Response(null, { status: 302, headers: { location: "/json" } });
    default:
      return text("text/plain", "no such page\n", 404);
  }
}
