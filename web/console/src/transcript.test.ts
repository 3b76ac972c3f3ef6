// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { createScribe, emptyTranscript, transcriptLimit } from "./transcript.ts";

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);
const at = (ms: number): Date => new Date(1_700_000_000_000 + ms);

test("chunks of one direction that come together are one entry", () => {
  const scribe = createScribe();
  let transcript = scribe.append(emptyTranscript, "in", utf8("hel"), at(0));
  transcript = scribe.append(transcript, "in", utf8("lo"), at(10));
  transcript = scribe.append(transcript, "out", utf8("hi"), at(11));
  transcript = scribe.append(transcript, "in", utf8("later"), at(500));
  transcript = scribe.append(transcript, "in", utf8("!"), at(700));
  assert.deepEqual(
    transcript.entries.map(({ direction, text }) => [direction, text]),
    [
      ["in", "hello"],
      ["out", "hi"],
      ["in", "later"],
      ["in", "!"],
    ],
  );
  assert.equal(transcript.received, 11);
  assert.equal(transcript.sent, 2);
  assert.equal(new Set(transcript.entries.map(({ id }) => id)).size, 4);
});

test("a character cut by a chunk border is put together", () => {
  const scribe = createScribe();
  const fox = utf8("🦊");
  let transcript = scribe.append(emptyTranscript, "in", fox.subarray(0, 2), at(0));
  transcript = scribe.append(transcript, "out", utf8("x"), at(1));
  transcript = scribe.append(transcript, "in", fox.subarray(2), at(2));
  assert.deepEqual(
    transcript.entries.map(({ text }) => text),
    ["", "x", "🦊"],
  );
});

test("an earlier transcript is not changed, nor are bytes shared", () => {
  const scribe = createScribe();
  const bytes = utf8("abc");
  const first = scribe.append(emptyTranscript, "in", bytes, at(0));
  bytes.fill(0);
  scribe.append(first, "in", utf8("d"), at(1));
  assert.equal(first.entries.length, 1);
  assert.deepEqual(first.entries[0]?.bytes, utf8("abc"));
});

test("old entries give way, and what they held is counted", () => {
  const scribe = createScribe();
  let transcript = emptyTranscript;
  const chunk = new Uint8Array(8192).fill(97);
  const chunks = transcriptLimit / chunk.length + 5;
  for (let i = 0; i < chunks; i++) {
    transcript = scribe.append(transcript, "in", chunk, at(i * 100));
  }
  const kept = transcript.entries.reduce((sum, entry) => sum + entry.bytes.length, 0);
  assert.equal(kept, transcriptLimit);
  assert.equal(transcript.dropped, 5 * chunk.length);
  assert.equal(transcript.received, chunks * chunk.length);
});

test("one huge chunk is kept whole", () => {
  const transcript = createScribe().append(emptyTranscript, "in", new Uint8Array(transcriptLimit * 2), at(0));
  assert.equal(transcript.entries.length, 1);
});
