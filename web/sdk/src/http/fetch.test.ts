// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { once } from "node:events";
import type { IncomingMessage, RequestListener } from "node:http";
import { afterEach, mock, suite, test } from "node:test";
import { deflateRawSync, gzipSync } from "node:zlib";
import type { MeshgateError } from "../error.js";
import { TestServer, type Wires, wires } from "../testing/http.js";
import { defined } from "../testing/mesh.js";
import { pattern, settled, until } from "../testing/wait.js";
import { HttpClient } from "./fetch.js";
import type { Target } from "./pool.js";

function code(expected: string, message = /./) {
  return (error: MeshgateError) => {
    assert.equal(error.name, "MeshgateError");
    assert.equal(error.code, expected);
    assert.match(error.message, message);
    return true;
  };
}

/** Runs a test against a real server. */
async function against(
  listener: RequestListener,
  run: (client: HttpClient, server: TestServer) => Promise<void>,
): Promise<void> {
  const server = await TestServer.start(listener);
  const client = new HttpClient(server.open);
  try {
    await run(client, server);
  } finally {
    client.closeIdle();
    await server[Symbol.asyncDispose]();
  }
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of request) {
    parts.push(part);
  }
  return Buffer.concat(parts);
}

/** Answers with what it was asked. */
const mirror: RequestListener = async (request, response) => {
  const body = await bodyOf(request);
  response.setHeader("content-type", "application/json");
  const { method, url, rawHeaders } = request;
  response.end(
    JSON.stringify({ method, url, headers: request.headers, rawHeaders, body: body.toString("latin1") }),
  );
};

const clients = new Set<HttpClient>();

afterEach(() => {
  for (const client of clients) {
    client.closeIdle();
  }
  clients.clear();
});

/** A client whose connections are in the hands of the test. */
function scripted(): { client: HttpClient; opened: Wires[]; targets: Target[] } {
  const opened: Wires[] = [];
  const targets: Target[] = [];
  const client = new HttpClient(async (target) => {
    const next = wires();
    opened.push(next);
    targets.push(target);
    return next.stream;
  });
  clients.add(client);
  return { client, opened, targets };
}

const text = (bytes: Uint8Array | undefined) => Buffer.from(defined(bytes)).toString("latin1");

suite("a request", () => {
  test("says what it is asked to", async () => {
    await against(mirror, async (client) => {
      const response = await client.fetch("http://web-1:8080/a%20b?c=d#e", {
        method: "put",
        headers: { "X-Custom": "1", "content-type": "text/x" },
        body: "Grüße",
      });
      assert.equal(response.status, 200);
      assert.equal(response.url, "http://web-1:8080/a%20b?c=d#e");
      assert.equal(response.redirected, false);
      const asked = await response.json();
      assert.equal(asked.method, "PUT");
      assert.equal(asked.url, "/a%20b?c=d");
      assert.equal(Buffer.from(asked.body, "latin1").toString(), "Grüße");
      assert.deepEqual(asked.headers, {
        host: "web-1:8080",
        "x-custom": "1",
        "content-type": "text/x",
        "content-length": "7",
        accept: "*/*",
        "accept-encoding": "gzip",
      });
    });
  });

  test("goes to the node of the URL, or to what a given node connects to", async () => {
    const { client, targets } = scripted();
    const asked: [string, string | undefined, Target | RegExp][] = [
      ["http://web-1/", undefined, { node: "web-1", host: "", port: 80 }],
      ["http://web-1:8080/", undefined, { node: "web-1", host: "", port: 8080 }],
      ["http://172.16.0.4:81/", "web-1", { node: "web-1", host: "172.16.0.4", port: 81 }],
      ["http://[fd00::1]/", "web-1", { node: "web-1", host: "fd00::1", port: 80 }],
      ["http://localhost/", "web-1", { node: "web-1", host: "localhost", port: 80 }],
      ["http://web-1/", "Web-1", { node: "Web-1", host: "", port: 80 }],
      ["http://172.16.0.4/", undefined, /option node/],
      ["http://[fd00::1]/", undefined, /option node/],
      ["https://web-1/", undefined, /use http/],
      ["http://user@web-1/", undefined, /authorization/],
      ["web-1", undefined, /not a URL/],
    ];
    for (const [url, node, want] of asked) {
      const abort = new AbortController();
      const asking = client.fetch(url, { signal: abort.signal, ...(node !== undefined && { node }) });
      if (want instanceof RegExp) {
        await assert.rejects(asking, code("invalid_argument", want));
      } else {
        await settled();
        abort.abort();
        await assert.rejects(asking, code("canceled"));
        assert.deepEqual(targets.pop(), want);
      }
    }
  });

  test("has a length when its body has one", async () => {
    const form = new FormData();
    form.set("field", "value");
    const bodies: [BodyInit, string | undefined][] = [
      ["text", "text/plain;charset=UTF-8"],
      [new URLSearchParams({ a: "b c" }), "application/x-www-form-urlencoded;charset=UTF-8"],
      [pattern(300), undefined],
      [new Blob(["x"], { type: "text/html" }), "text/html"],
      [form, "multipart/form-data"],
      ["", "text/plain;charset=UTF-8"],
    ];
    await against(mirror, async (client) => {
      for (const [body, type] of bodies) {
        const asked = await (await client.fetch("http://a/", { method: "POST", body })).json();
        assert.equal(asked.headers["content-length"], String(asked.body.length));
        assert.equal(asked.headers["content-type"]?.slice(0, type?.length), type);
        assert.equal(asked.headers["transfer-encoding"], undefined);
      }
      const empty = await (await client.fetch("http://a/", { method: "POST" })).json();
      assert.equal(empty.headers["content-length"], "0");
    });
  });

  test("streams a body in chunks", async () => {
    await against(mirror, async (client) => {
      const parts = [pattern(1), new Uint8Array(0), pattern(70_000)];
      const body = new ReadableStream({
        pull(controller) {
          const part = parts.shift();
          part === undefined ? controller.close() : controller.enqueue(part);
        },
      });
      const asked = await (await client.fetch("http://a/", { method: "POST", body })).json();
      assert.equal(asked.headers["transfer-encoding"], "chunked");
      assert.equal(asked.body.length, 70_001);
    });
  });

  test("may be a Request", async () => {
    await against(mirror, async (client) => {
      const request = new Request("http://web-1/x", { method: "POST", body: "abc", headers: { "x-a": "1" } });
      const asked = await (await client.fetch(request, { headers: { "x-b": "2" } })).json();
      assert.equal(asked.body, "abc");
      assert.equal(asked.headers["content-length"], "3");
      assert.equal(asked.headers["x-a"], undefined);
      assert.equal(asked.headers["x-b"], "2");
      const large = new Request("http://web-1/x", { method: "POST", body: pattern(1_500_000) });
      assert.equal((await (await client.fetch(large)).json()).body.length, 1_500_000);
    });
  });

  test("is refused when it cannot be right", async () => {
    const { client } = scripted();
    const refused: [Parameters<HttpClient["fetch"]>[1], RegExp][] = [
      [{ method: "CONNECT" }, /CONNECT/],
      [{ method: "TRACE" }, /TRACE/],
      [{ method: "GET / HTTP/1.1\r\nX: y" }, /method/],
      [{ method: "" }, /method/],
      [{ body: "x" }, /GET request has no body/],
      [{ headers: { "content-length": "3" } }, /content-length/],
      [{ headers: { "Transfer-Encoding": "chunked" } }, /transfer-encoding/],
      [{ headers: { connection: "upgrade" } }, /connection/],
      [{ headers: { upgrade: "websocket" } }, /upgrade/],
    ];
    for (const [init, message] of refused) {
      await assert.rejects(client.fetch("http://a/", init), code("invalid_argument", message));
    }
    await assert.rejects(client.fetch("http://a/", { headers: { "x-a": "a\r\nb: c" } }), code("unknown"));
  });

  test("tells the service when its body fails", async () => {
    const { client, opened } = scripted();
    let pulled = false;
    const body = new ReadableStream({
      pull(controller) {
        pulled ? controller.error(new Error("disk is gone")) : controller.enqueue(pattern(3));
        pulled = true;
      },
    });
    await assert.rejects(
      client.fetch("http://a/", { method: "POST", body }),
      code("unknown", /disk is gone/),
    );
    assert.equal(opened[0]?.closed, true);
    const strings = new ReadableStream({ start: (controller) => controller.enqueue("text") });
    await assert.rejects(
      client.fetch("http://a/", { method: "POST", body: strings }),
      code("invalid_argument", /Uint8Array/),
    );
  });
});

suite("a response", () => {
  test("has a URL, all headers and a streaming body", async () => {
    await against(
      (_, response) => {
        response.writeHead(201, "Made", [
          ["Set-Cookie", "a=1"],
          ["Set-Cookie", "b=2"],
          ["X-A", "\xfc"],
        ]);
        response.write("first");
        response.end("second");
      },
      async (client) => {
        const response = await client.fetch("http://web-1/");
        assert.deepEqual([response.status, response.statusText, response.ok], [201, "Made", true]);
        assert.deepEqual(response.headers.getSetCookie(), ["a=1", "b=2"]);
        assert.equal(response.headers.get("x-a"), "\xfc");
        const copy = response.clone();
        assert.equal(copy.url, "http://web-1/");
        assert.deepEqual(copy.headers.getSetCookie(), ["a=1", "b=2"]);
        assert.deepEqual([await response.text(), await copy.text()], ["firstsecond", "firstsecond"]);
      },
    );
  });

  test("carries megabytes unchanged", async () => {
    const sent = pattern(3_000_000);
    await against(
      (_, response) => void response.end(sent),
      async (client) => {
        const response = await client.fetch("http://web-1/");
        assert.ok(Buffer.from(await response.arrayBuffer()).equals(sent));
      },
    );
  });

  test("without a body has none", async () => {
    await against(
      (request, response) => {
        response.statusCode = Number(request.url?.slice(1));
        response.end();
      },
      async (client, { sockets }) => {
        for (const status of [204, 205, 304]) {
          const response = await client.fetch(`http://a/${status}`);
          assert.equal(response.status, status);
          assert.equal(response.body, null);
        }
        const head = await client.fetch("http://a/200", { method: "HEAD" });
        assert.equal(head.body, null);
        const empty = await client.fetch("http://a/200");
        assert.equal(await empty.text(), "");
        assert.equal(sockets.length, 1);
      },
    );
  });

  test("is decompressed", async () => {
    const plain = pattern(300_000);
    await against(
      (request, response) => {
        const raw = request.url === "/broken" ? deflateRawSync(plain) : gzipSync(plain);
        response.setHeader("content-encoding", "gzip");
        response.end(
          request.headers["accept-encoding"] === "gzip" || request.url === "/raw" ? raw : "identity",
        );
      },
      async (client) => {
        const response = await client.fetch("http://a/");
        assert.ok(Buffer.from(await response.arrayBuffer()).equals(plain));
        const raw = await client.fetch("http://a/raw", { headers: { "accept-encoding": "br, gzip" } });
        assert.ok(Buffer.from(await raw.arrayBuffer()).equals(gzipSync(plain)));
        const broken = await client.fetch("http://a/broken");
        await assert.rejects(broken.arrayBuffer(), code("internal", /gzip/));
        const range = await client.fetch("http://a/range", { headers: { range: "bytes=0-1" } });
        await assert.rejects(range.text(), code("internal", /gzip/));
      },
    );
  });

  test("may come before the request is complete", async () => {
    const { client, opened } = scripted();
    let cancelled = false;
    const body = new ReadableStream({
      async pull(controller) {
        await settled();
        controller.enqueue(pattern(10));
      },
      cancel() {
        cancelled = true;
      },
    });
    const asking = client.fetch("http://a/", { method: "POST", body });
    await until(() => opened.length === 1);
    defined(opened[0]).push("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
    const response = await asking;
    assert.equal(response.status, 413);
    assert.equal(await response.text(), "big");
    // What is still to be sent makes the connection useless.
    assert.equal(opened[0]?.closed, true);
    opened[0]?.fail(new Error("closed"));
    await until(() => cancelled);
  });

  test("that breaks off breaks its body", async () => {
    const { client, opened } = scripted();
    const asking = client.fetch("http://a/");
    await until(() => opened.length === 1);
    defined(opened[0]).push("HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nbig");
    const response = await asking;
    defined(opened[0]).end();
    await assert.rejects(response.text(), code("data_loss", /middle of the body/));
  });

  test("that never comes is an error", async () => {
    const { client, opened } = scripted();
    const asking = client.fetch("http://a/");
    await until(() => opened.length === 1);
    defined(opened[0]).end();
    await assert.rejects(asking, code("unavailable", /without an answer/));
  });
});

suite("redirects", () => {
  const routes: RequestListener = async (request, response) => {
    const body = await bodyOf(request);
    const url = new URL(request.url ?? "", "http://a");
    const to = url.searchParams.get("to");
    if (to !== null) {
      response.statusCode = Number(url.pathname.slice(1));
      response.setHeader("location", to);
      response.end("moved");
      return;
    }
    response.end(
      JSON.stringify({
        method: request.method,
        url: request.url,
        headers: request.headers,
        body: body.toString(),
      }),
    );
  };

  test("are followed", async () => {
    await against(routes, async (client) => {
      const response = await client.fetch("http://web-1:8080/301?to=/there%3Fx", {
        headers: { authorization: "secret" },
      });
      assert.equal(response.redirected, true);
      assert.equal(response.url, "http://web-1:8080/there?x");
      const asked = await response.json();
      assert.equal(asked.url, "/there?x");
      assert.equal(asked.headers.authorization, "secret");
    });
  });

  test("change the method as browsers do", async () => {
    await against(routes, async (client) => {
      const cases: [number, string, string][] = [
        [301, "POST", "GET"],
        [302, "POST", "GET"],
        [303, "POST", "GET"],
        [303, "PUT", "GET"],
        [303, "HEAD", "HEAD"],
        [301, "PUT", "PUT"],
        [307, "POST", "POST"],
        [308, "PUT", "PUT"],
      ];
      for (const [status, method, want] of cases) {
        const body = method === "HEAD" ? null : "data";
        const response = await client.fetch(`http://a/${status}?to=/x`, { method, body });
        if (want === "HEAD") {
          assert.equal(response.body, null);
          continue;
        }
        const asked = await response.json();
        assert.equal(asked.method, want, `${status} ${method}`);
        assert.equal(asked.body, want === "GET" ? "" : "data");
        assert.equal(asked.headers["content-type"], want === "GET" ? undefined : "text/plain;charset=UTF-8");
      }
    });
  });

  test("to another host lose what is secret", async () => {
    const { client, opened, targets } = scripted();
    const headers = { authorization: "secret", cookie: "a=b", host: "virtual", "x-kept": "1" };
    const asking = client.fetch("http://web-1/", { headers });
    await until(() => opened.length === 1);
    assert.match(text(await opened[0]?.sent.next()), /^GET \/ HTTP\/1.1\r\nhost: virtual\r\n/);
    opened[0]?.push("HTTP/1.1 302 Found\r\nLocation: http://web-2:81/y\r\nContent-Length: 0\r\n\r\n");
    await until(() => opened.length === 2);
    const second = text(await opened[1]?.sent.next());
    assert.match(second, /^GET \/y HTTP\/1.1\r\nhost: web-2:81\r\n/);
    assert.doesNotMatch(second, /secret|cookie/);
    assert.match(second, /x-kept: 1/);
    opened[1]?.push("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert.equal((await asking).url, "http://web-2:81/y");
    assert.deepEqual(
      targets.map(({ node, port }) => [node, port]),
      [
        ["web-1", 80],
        ["web-2", 81],
      ],
    );
  });

  test("stay at the node that was given", async () => {
    const { client, opened, targets } = scripted();
    void client
      .fetch("http://10.0.0.1/", { node: "web-1", signal: AbortSignal.timeout(10_000) })
      .catch(() => {});
    await until(() => opened.length === 1);
    opened[0]?.push("HTTP/1.1 302 Found\r\nLocation: http://10.0.0.2/y\r\nContent-Length: 0\r\n\r\n");
    await until(() => opened.length === 2);
    assert.deepEqual(targets[1], { node: "web-1", host: "10.0.0.2", port: 80 });
  });

  test("are returned or refused when asked so", async () => {
    await against(routes, async (client) => {
      const response = await client.fetch("http://a/302?to=/x", { redirect: "manual" });
      assert.deepEqual(
        [response.status, response.headers.get("location"), await response.text()],
        [302, "/x", "moved"],
      );
      await assert.rejects(
        client.fetch("http://a/302?to=/x", { redirect: "error" }),
        code("failed_precondition"),
      );
    });
  });

  test("do not go in circles or out of the mesh", async () => {
    let count = 0;
    await against(
      (_, response) => {
        count++;
        response.writeHead(302, { location: "/" }).end();
      },
      async (client) => {
        await assert.rejects(client.fetch("http://a/"), code("failed_precondition", /20 redirects/));
        assert.equal(count, 21);
      },
    );
    await against(routes, async (client) => {
      await assert.rejects(
        client.fetch("http://a/302?to=https://example.org/"),
        code("invalid_argument", /https/),
      );
      const body = new ReadableStream({ start: (controller) => controller.close() });
      await assert.rejects(
        client.fetch("http://a/307?to=/x", { method: "POST", body }),
        code("failed_precondition", /cannot be sent again/),
      );
    });
  });
});

suite("connections", () => {
  test("are used again", async () => {
    await against(mirror, async (client, { sockets }) => {
      for (let count = 0; count < 5; count++) {
        await (await client.fetch("http://a/")).text();
      }
      assert.equal(sockets.length, 1);
      // What must not be sent twice does not go over a connection that may be dead.
      await (await client.fetch("http://a/", { method: "POST", body: "x" })).text();
      assert.equal(sockets.length, 2);
    });
  });

  test("are not used again when the service says so", async () => {
    await against(
      (_, response) => void response.setHeader("connection", "close").end("x"),
      async (client, { sockets }) => {
        await (await client.fetch("http://a/")).text();
        await (await client.fetch("http://a/")).text();
        assert.equal(sockets.length, 2);
      },
    );
  });

  test("are not used again after unexpected bytes, or when the service ends them", async () => {
    for (const disturb of [(wire: Wires) => wire.push("HTTP/1.1 200 OK\r\n"), (wire: Wires) => wire.end()]) {
      const { client, opened } = scripted();
      const first = client.fetch("http://a/");
      await until(() => opened.length === 1);
      opened[0]?.push("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
      await (await first).text();
      disturb(defined(opened[0]));
      await until(() => opened[0]?.closed === true);
    }
    const { client, opened } = scripted();
    const first = client.fetch("http://a/");
    await until(() => opened.length === 1);
    opened[0]?.push("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n");
    await (await first).text();
    assert.equal(opened[0]?.closed, true);
  });

  test("that die as they are used again are replaced", async () => {
    const { client, opened } = scripted();
    const first = client.fetch("http://a/");
    await until(() => opened.length === 1);
    opened[0]?.push("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    await first;
    // The end comes only after the second request has been sent.
    await opened[0]?.sent.next();
    const second = client.fetch("http://a/2");
    assert.match(text(await opened[0]?.sent.next()), /^GET \/2/);
    opened[0]?.end();
    await until(() => opened.length === 2);
    assert.match(text(await opened[1]?.sent.next()), /^GET \/2/);
    opened[1]?.push("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert.equal((await second).status, 200);
  });

  test("are at most 16 for one service", async () => {
    let active = 0;
    let most = 0;
    await against(
      (_, response) => {
        most = Math.max(most, ++active);
        setImmediate(() => {
          active--;
          response.end("x");
        });
      },
      async (client, { sockets }) => {
        await Promise.all(Array.from({ length: 100 }, async () => (await client.fetch("http://a/")).text()));
        assert.equal(sockets.length, 16);
        assert.ok(most <= 16);
      },
    );
  });

  test("that wait for their turn can be aborted", async () => {
    const { client, opened } = scripted();
    const others = Array.from({ length: 16 }, () => client.fetch("http://a/"));
    await until(() => opened.length === 16);
    const abort = new AbortController();
    const aborted = client.fetch("http://a/aborted", { signal: abort.signal });
    const last = client.fetch("http://a/last");
    abort.abort();
    await assert.rejects(aborted, code("canceled"));
    opened[0]?.push("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    await others[0];
    await opened[0]?.sent.next();
    assert.match(text(await opened[0]?.sent.next()), /^GET \/last/);
    opened[0]?.push("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    await last;
    for (const [index, wire] of opened.entries()) {
      wire.fail(new Error("over"));
      await others[index]?.catch(() => {});
    }
  });

  test("are closed when they were idle for a while", async () => {
    mock.timers.enable({ apis: ["setTimeout"] });
    try {
      const { client, opened } = scripted();
      const asking = client.fetch("http://a/");
      await until(() => opened.length === 1);
      opened[0]?.push("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
      await asking;
      mock.timers.tick(29_999);
      assert.equal(opened[0]?.closed, false);
      mock.timers.tick(1);
      assert.equal(opened[0]?.closed, true);
    } finally {
      mock.timers.reset();
    }
  });
});

suite("an abort", () => {
  test("before the request", async () => {
    const { client, opened } = scripted();
    await assert.rejects(client.fetch("http://a/", { signal: AbortSignal.abort() }), code("canceled"));
    assert.equal(opened.length, 0);
  });

  test("while the response is awaited", async () => {
    const { client, opened } = scripted();
    const abort = new AbortController();
    const asking = client.fetch("http://a/", { signal: abort.signal });
    await until(() => opened.length === 1);
    await opened[0]?.sent.next();
    abort.abort();
    await assert.rejects(asking, code("canceled"));
    assert.equal(opened[0]?.closed, true);
  });

  test("while the request is being sent", async () => {
    const { client, opened } = scripted();
    const abort = new AbortController();
    let cancelled = false;
    const body = new ReadableStream({
      async pull(controller) {
        await settled();
        controller.enqueue(pattern(10));
      },
      cancel() {
        cancelled = true;
      },
    });
    const asking = client.fetch("http://a/", { method: "POST", body, signal: abort.signal });
    await until(() => (opened[0]?.sent.length ?? 0) > 5);
    abort.abort();
    await assert.rejects(asking, code("canceled"));
    await until(() => cancelled);
  });

  test("while the body is read", async () => {
    await against(
      (_, response) => {
        response.write("beginning");
      },
      async (client, { sockets }) => {
        const abort = new AbortController();
        const response = await client.fetch("http://a/", { signal: abort.signal });
        const reader = defined(response.body).getReader();
        await reader.read();
        const reading = reader.read();
        abort.abort(new DOMException("too slow", "TimeoutError"));
        await assert.rejects(reading, code("deadline_exceeded"));
        const socket = defined(sockets[0]);
        if (!socket.closed) {
          await once(socket, "close");
        }
      },
    );
  });

  test("after the body has no effect on the connection", async () => {
    await against(mirror, async (client, { sockets }) => {
      const abort = new AbortController();
      await (await client.fetch("http://a/", { signal: abort.signal })).text();
      abort.abort();
      await (await client.fetch("http://a/")).text();
      assert.equal(sockets.length, 1);
    });
  });

  test("by cancelling the body ends the connection", async () => {
    const { client, opened } = scripted();
    const asking = client.fetch("http://a/");
    await until(() => opened.length === 1);
    defined(opened[0]).push("HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nbig");
    await (await asking).body?.cancel();
    assert.equal(opened[0]?.closed, true);
  });
});
