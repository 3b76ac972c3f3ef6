// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { suite, test } from "node:test";
import type { MeshgateError } from "../error.js";
import { wires } from "../testing/http.js";
import { readBody } from "./body.js";
import { framing, keepsAlive, readHead } from "./head.js";
import { ByteReader } from "./reader.js";

/** A response as it was understood. */
interface Parsed {
  status: number;
  statusText: string;
  headers: [string, string][];
  body: string;
  /** Bytes behind the response. */
  rest: string;
  keepsAlive: boolean;
}

/** Reads a response that arrives in parts and is followed by the end of the connection. */
async function parse(parts: (string | Uint8Array)[], method = "GET"): Promise<Parsed> {
  const { stream, push, end } = wires();
  push(...parts);
  end();
  const reader = new ByteReader(stream.readable);
  const head = await readHead(reader);
  assert.ok(head !== undefined);
  const frame = framing(method, head);
  const body: Uint8Array[] = [];
  for await (const part of readBody(reader, frame)) {
    body.push(part);
  }
  const rest: Uint8Array[] = [];
  for (let part = await reader.read(1000); part !== undefined; part = await reader.read(1000)) {
    rest.push(part);
  }
  return {
    status: head.status,
    statusText: head.statusText,
    headers: [...head.headers],
    body: Buffer.concat(body).toString("latin1"),
    rest: Buffer.concat(rest).toString("latin1"),
    keepsAlive: keepsAlive(method, head) && frame.kind !== "close",
  };
}

const ok = "HTTP/1.1 200 OK\r\n";

suite("a response", () => {
  const good: { name: string; text: string; method?: string; want: Partial<Parsed> }[] = [
    {
      name: "content-length",
      text: `${ok}Content-Length: 3\r\n\r\nabcHTTP`,
      want: { status: 200, statusText: "OK", body: "abc", rest: "HTTP", keepsAlive: true },
    },
    { name: "empty", text: `${ok}Content-Length: 0\r\n\r\n`, want: { body: "", keepsAlive: true } },
    {
      name: "up to the end of the connection",
      text: `${ok}\r\nabc\r\ndef`,
      want: { body: "abc\r\ndef", keepsAlive: false },
    },
    {
      name: "chunked",
      text: `${ok}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nX`,
      want: { body: "abc0123456789", rest: "X", keepsAlive: true },
    },
    {
      name: "chunk extensions and trailers",
      text: `${ok}transfer-encoding: Chunked\r\n\r\n3;a=b;c="d"\r\nabc\r\n0 ;x\r\nA: b\r\nC: d\r\n\r\n`,
      want: { body: "abc", rest: "", headers: [["transfer-encoding", "Chunked"]] },
    },
    {
      name: "a chunk size with zeros in front",
      text: `${ok}Transfer-Encoding: chunked\r\n\r\n0000003\r\nabc\r\n000\r\n\r\n`,
      want: { body: "abc" },
    },
    {
      name: "HEAD",
      text: `${ok}Content-Length: 1000\r\n\r\n`,
      method: "HEAD",
      want: { body: "", keepsAlive: true },
    },
    {
      name: "HEAD, chunked",
      text: `${ok}Transfer-Encoding: chunked\r\n\r\n`,
      method: "HEAD",
      want: { body: "", keepsAlive: true },
    },
    {
      name: "204",
      text: "HTTP/1.1 204 No Content\r\n\r\n",
      want: { status: 204, body: "", keepsAlive: true },
    },
    {
      name: "204 that announces a body",
      text: "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
      want: { body: "", rest: "abc", keepsAlive: false },
    },
    {
      name: "304 that tells the length of the whole",
      text: "HTTP/1.1 304 Not Modified\r\nContent-Length: 300\r\n\r\n",
      want: { body: "", keepsAlive: true },
    },
    {
      name: "205",
      text: "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
      want: { body: "", keepsAlive: true },
    },
    {
      name: "interim responses first",
      text: `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${ok}Content-Length: 1\r\n\r\nx`,
      want: { status: 200, headers: [["content-length", "1"]], body: "x" },
    },
    {
      name: "connection: close",
      text: `${ok}Content-Length: 0\r\nConnection: keep-alive, Close\r\n\r\n`,
      want: { keepsAlive: false },
    },
    {
      name: "HTTP/1.0",
      text: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
      want: { body: "x", keepsAlive: false },
    },
    { name: "no reason", text: "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", want: { statusText: "" } },
    {
      name: "no reason and no space",
      text: "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
      want: { statusText: "" },
    },
    {
      name: "Latin-1 in reason and values",
      text: `HTTP/1.1 200 \xe9t\xe9\r\nX: \xfc\r\nContent-Length: 0\r\n\r\n`,
      want: {
        statusText: "\xe9t\xe9",
        headers: [
          ["content-length", "0"],
          ["x", "\xfc"],
        ],
      },
    },
    {
      name: "white space around values, empty values",
      text: `${ok}A: \t b c \t\r\nB:\r\nC:d\r\nContent-Length:0\r\n\r\n`,
      want: {
        headers: [
          ["a", "b c"],
          ["b", ""],
          ["c", "d"],
          ["content-length", "0"],
        ],
      },
    },
    {
      name: "repeated headers",
      text: `${ok}A: 1\r\na: 2\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n`,
      want: {
        headers: [
          ["a", "1, 2"],
          ["content-length", "0"],
          ["set-cookie", "a=1"],
          ["set-cookie", "b=2"],
        ],
      },
    },
  ];
  for (const { name, text, method, want } of good) {
    test(name, async () => {
      const parsed = await parse([text], method);
      for (const [key, value] of Object.entries(want)) {
        assert.deepEqual(parsed[key as keyof Parsed], value, key);
      }
    });
  }

  const bad: [name: string, text: string, message: RegExp, code?: string][] = [
    ["not HTTP", "SSH-2.0-OpenSSH_9.9\r\n\r\n", /status line/],
    ["HTTP/2", "HTTP/2.0 200 OK\r\n\r\n", /status line/],
    ["a status of two digits", "HTTP/1.1 20 OK\r\n\r\n", /status line/],
    ["a status out of range", "HTTP/1.1 600 X\r\n\r\n", /status line/],
    ["two spaces", "HTTP/1.1  200 OK\r\n\r\n", /status line/],
    ["an empty line first", `\r\n${ok}\r\n`, /status line/],
    ["a switch of protocols", "HTTP/1.1 101 Switching Protocols\r\n\r\n", /switches/],
    ["endless interim responses", "HTTP/1.1 100 Continue\r\n\r\n".repeat(20), /interim/],
    ["a bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", /CR LF/],
    ["a bare LF in headers", `${ok}A: b\nContent-Length: 0\r\n\r\n`, /CR LF/],
    ["a bare CR", `${ok}A: b\rC: d\r\n\r\n`, /CR/],
    ["a folded header", `${ok}A: b\r\n c\r\n\r\n`, /characters/],
    ["a space before the colon", `${ok}Content-Length : 3\r\n\r\nabc`, /characters/],
    ["no colon", `${ok}hello\r\n\r\n`, /characters/],
    ["no name", `${ok}: x\r\n\r\n`, /characters/],
    ["a NUL in a value", `${ok}A: b\0\r\n\r\n`, /characters/],
    ["two lengths", `${ok}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd`, /content length/],
    ["the same length twice", `${ok}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc`, /content length/],
    ["a negative length", `${ok}Content-Length: -3\r\n\r\nabc`, /content length/],
    ["a signed length", `${ok}Content-Length: +3\r\n\r\nabc`, /content length/],
    ["a hexadecimal length", `${ok}Content-Length: 0x3\r\n\r\nabc`, /content length/],
    ["an empty length", `${ok}Content-Length:\r\n\r\nabc`, /content length/],
    ["a length beyond numbers", `${ok}Content-Length: 99999999999999999999\r\n\r\n`, /content length/],
    [
      "a length and chunked",
      `${ok}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
      /transfer encoding/,
    ],
    [
      "chunked twice",
      `${ok}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
      /transfer encoding/,
    ],
    ["another coding", `${ok}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n`, /transfer encoding/],
    ["identity", `${ok}Transfer-Encoding: identity\r\n\r\nabc`, /transfer encoding/],
    [
      "chunked in HTTP/1.0",
      "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      /transfer encoding/,
    ],
    ["a chunk size that is none", `${ok}Transfer-Encoding: chunked\r\n\r\nxyz\r\n`, /valid size/],
    ["a chunk size with 0x", `${ok}Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n`, /valid size/],
    ["a chunk size with a sign", `${ok}Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n`, /valid size/],
    ["an empty chunk size", `${ok}Transfer-Encoding: chunked\r\n\r\n\r\nabc\r\n`, /valid size/],
    [
      "a chunk size beyond numbers",
      `${ok}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n`,
      /valid size/,
    ],
    ["a bare LF behind a chunk size", `${ok}Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n`, /CR LF/],
    ["a chunk that is too long", `${ok}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n`, /./],
    [
      "an endless chunk extension",
      `${ok}Transfer-Encoding: chunked\r\n\r\n3;${"x".repeat(2000)}\r\nabc\r\n`,
      /too long/,
    ],
    ["endless headers", `${ok}A: ${"x".repeat(70_000)}\r\n\r\n`, /too long/],
    ["too many headers", `${ok}${"A: b\r\n".repeat(300)}\r\n`, /too many/],
    [
      "endless trailers",
      `${ok}Transfer-Encoding: chunked\r\n\r\n0\r\nA: ${"x".repeat(20_000)}\r\n\r\n`,
      /too long/,
    ],
    ["headers that break off", `${ok}A: b\r\n`, /ends in the middle/],
    ["a status line that breaks off", "HTTP/1.1 2", /ends in the middle/],
    ["a body that breaks off", `${ok}Content-Length: 5\r\n\r\nabc`, /middle of the body/, "data_loss"],
    [
      "a chunk that breaks off",
      `${ok}Transfer-Encoding: chunked\r\n\r\n5\r\nabc`,
      /middle of a chunk/,
      "data_loss",
    ],
    [
      "chunks that break off",
      `${ok}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n`,
      /middle of the body/,
      "data_loss",
    ],
    [
      "chunks that break off behind a chunk",
      `${ok}Transfer-Encoding: chunked\r\n\r\n3\r\nabc`,
      /middle of the body/,
      "data_loss",
    ],
  ];
  for (const [name, text, message, code = "internal"] of bad) {
    test(`refused: ${name}`, async () => {
      await assert.rejects(parse([text]), (error: MeshgateError) => {
        assert.equal(error.name, "MeshgateError");
        assert.equal(error.code, code);
        assert.match(error.message, message);
        return true;
      });
    });
  }

  test("is the same however it is cut", async () => {
    const random = randomNumbers(20_261_122);
    const responses = good.map(({ text, method }) => ({ text, method }));
    for (let round = 0; round < 300; round++) {
      const { text, method } = responses[random(responses.length)] ?? { text: ok, method: undefined };
      assert.deepEqual(await parse(cut(text, random), method), await parse([text], method));
    }
  });

  test("that was changed at random is understood the same way however it is cut, or refused", async () => {
    const random = randomNumbers(7);
    const outcome = (parts: string[]) =>
      parse(parts).then(JSON.stringify, (error: MeshgateError) => {
        assert.equal(error.name, "MeshgateError");
        return error.message;
      });
    for (let round = 0; round < 500; round++) {
      const { text } = good[random(good.length)] ?? { text: ok };
      const at = random(text.length);
      const mutant = text.slice(0, at) + String.fromCharCode(random(256)) + text.slice(at + random(3));
      assert.equal(await outcome(cut(mutant, random)), await outcome([mutant]));
    }
  });
});

/** A small generator of numbers below a bound, the same in each run. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 48_271) % 0x7fffffff;
    return state % below;
  };
}

function cut(text: string, random: (below: number) => number): string[] {
  const parts: string[] = [];
  for (let offset = 0; offset < text.length; ) {
    const end = offset + 1 + random(6);
    parts.push(text.slice(offset, end));
    offset = end;
  }
  return parts;
}
