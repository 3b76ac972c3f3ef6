// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { encodeLine, hexDump, looksLikeText, parseHex, visibleText } from "./text.ts";

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

test("visibleText keeps lines and tabs and shows all other controls", () => {
  const cases: [string, string][] = [
    ["a\tb\nc", "a\tb\nc"],
    ["a\r\nb", "a\nb"],
    ["a\rb", "a␍b"],
    ["\x1b[31mred\x00\x7f", "␛[31mred␀␡"],
    ["x\u202Ey", "x\\u{202e}y"],
    ["ü🦊", "ü🦊"],
    ["\u0085", "\\u{85}"],
  ];
  for (const [text, want] of cases) {
    assert.equal(visibleText(text), want);
  }
});

test("hexDump shows offset, bytes and ASCII", () => {
  assert.equal(
    hexDump(utf8("Hello, mesh!\n\x00ü")),
    "0000  48 65 6c 6c 6f 2c 20 6d 65 73 68 21 0a 00 c3 bc  Hello, mesh!....",
  );
  assert.equal(hexDump(utf8("abcde"), 4), "0000  61 62 63 64  abcd\n0004  65           e");
  assert.equal(hexDump(new Uint8Array()), "");
});

test("parseHex takes pairs in the usual spellings", () => {
  for (const text of ["48656c", "48 65 6c", "0x48, 0x65, 0x6C", "48:65:6c"]) {
    assert.deepEqual(parseHex(text), Uint8Array.of(0x48, 0x65, 0x6c), text);
  }
  for (const text of ["4", "48 6", "zz", "4g"]) {
    assert.equal(parseHex(text), undefined, text);
  }
  assert.deepEqual(parseHex(""), new Uint8Array());
});

test("encodeLine adds the chosen ending", () => {
  assert.deepEqual(encodeLine("hi", "lf"), utf8("hi\n"));
  assert.deepEqual(encodeLine("hi", "crlf"), utf8("hi\r\n"));
  assert.deepEqual(encodeLine("ü", "none"), utf8("ü"));
  assert.deepEqual(encodeLine("00 ff", "hex"), Uint8Array.of(0, 255));
  assert.equal(encodeLine("hi", "hex"), undefined);
});

test("looksLikeText tells text from bytes", () => {
  assert.ok(looksLikeText(utf8("plain\r\n\ttext ü")));
  assert.ok(looksLikeText(new Uint8Array()));
  assert.ok(looksLikeText(utf8(`${"a".repeat(4095)}ü`)), "a character cut by the end of the sample");
  assert.ok(!looksLikeText(Uint8Array.of(0x89, 0x50, 0x4e, 0x47)));
  assert.ok(!looksLikeText(utf8("a\x00b")));
  assert.ok(!looksLikeText(utf8("\x01\x02\x03\x04abc")));
});
