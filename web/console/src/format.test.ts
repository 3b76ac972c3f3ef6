// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { ago, bytes, clock, count, duration, hostPort, label, milliseconds } from "./format.ts";

test("bytes uses units of 1000 and at most three digits", () => {
  const cases: [number, string][] = [
    [0, "0 B"],
    [10, "10 B"],
    [999, "999 B"],
    [1000, "1 kB"],
    [1536, "1.54 kB"],
    [15_300, "15.3 kB"],
    [99_949, "99.9 kB"],
    [99_999, "100 kB"],
    [999_499, "999 kB"],
    [999_999, "1 MB"],
    [4_100_000, "4.1 MB"],
    [2 ** 53, "9.01 PB"],
    [-5, "0 B"],
  ];
  for (const [n, want] of cases) {
    assert.equal(bytes(n), want, String(n));
  }
});

test("duration names the two largest units", () => {
  const s = 1000;
  const cases: [number, string][] = [
    [0, "0 s"],
    [999, "0 s"],
    [12 * s, "12 s"],
    [60 * s, "1 min"],
    [61 * s, "1 min 1 s"],
    [3600 * s, "1 h"],
    [3661 * s, "1 h 1 min"],
    [(86_400 * 3 + 3600 * 4 + 59) * s, "3 d 4 h"],
  ];
  for (const [ms, want] of cases) {
    assert.equal(duration(ms), want, String(ms));
  }
});

test("ago tells never, just now and a length of time", () => {
  const now = Date.UTC(2026, 0, 1);
  assert.equal(ago(undefined, now), "never");
  assert.equal(ago(new Date(now - 500), now), "just now");
  assert.equal(ago(new Date(now + 5000), now), "just now");
  assert.equal(ago(new Date(now - 12_000), now), "12 s ago");
});

test("milliseconds keeps a decimal for short times only", () => {
  assert.equal(milliseconds(0.44), "0.4 ms");
  assert.equal(milliseconds(12.4), "12 ms");
});

test("count agrees with its noun", () => {
  assert.equal(count(1, "node"), "1 node");
  assert.equal(count(1234, "node"), "1,234 nodes");
  assert.equal(count(2, "address", "addresses"), "2 addresses");
});

test("clock is fixed in width", () => {
  assert.equal(clock(new Date(2026, 0, 1, 3, 4, 5, 6)), "03:04:05.006");
});

test("label shows characters that would deceive", () => {
  const cases: [string, string][] = [
    ["web-1", "web-1"],
    ["名前-ü-🦊", "名前-ü-🦊"],
    ["admin\u202Etxt.exe", "admin\\u{202e}txt.exe"],
    ["zero\u200Bwidth", "zero\\u{200b}width"],
    ["\u2066iso\u2069", "\\u{2066}iso\\u{2069}"],
    ["bell\u0007", "bell\\u{7}"],
    ["\uFEFFbom", "\\u{feff}bom"],
    ["<b>", "<b>"],
  ];
  for (const [text, want] of cases) {
    assert.equal(label(text), want);
  }
});

test("hostPort brackets IPv6", () => {
  assert.equal(hostPort("10.0.0.5", 22), "10.0.0.5:22");
  assert.equal(hostPort("fd00::5", 22), "[fd00::5]:22");
});
