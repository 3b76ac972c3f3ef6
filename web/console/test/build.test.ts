// SPDX-License-Identifier: Apache-2.0

// What the gateway embeds: small, free of inline code, free of the fake.

import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { buildConsole } from "./site.ts";

test("the build is small, strict and complete", async (t) => {
  const { folder, remove } = await buildConsole("production");
  t.after(remove);
  const names = (await readdir(folder, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));
  const files = new Map(await Promise.all(names.map(async (name) => [name, await readFile(name)] as const)));

  await t.test("the first load is under 200 KB compressed", () => {
    const size = [...files.values()].reduce((sum, data) => sum + gzipSync(data).length, 0);
    t.diagnostic(`first load: ${size} bytes compressed`);
    assert.ok(size < 200_000, `${size} bytes`);
  });

  await t.test("the page has no inline code and only relative addresses", () => {
    const html = files.get(join(folder, "index.html"))?.toString() ?? "";
    assert.doesNotMatch(html, /<style|\sstyle=|\son\w+=/i);
    assert.doesNotMatch(html, /<script(?![^>]*\ssrc=)/i);
    const addresses = [...html.matchAll(/(?:src|href)="([^"]*)"/g)].map(([, address]) => address);
    assert.ok(addresses.length >= 3);
    for (const address of addresses) {
      assert.match(address ?? "", /^\.\/assets\/[\w.-]+-[\w-]{8}\.\w+$/);
    }
  });

  await t.test("nothing of the fake and nothing that needs eval is in it", () => {
    for (const [name, data] of files) {
      const text = data.toString();
      assert.ok(!text.includes("meshgateFake") && !text.includes("hotel-pc"), name);
      assert.doesNotMatch(text, /new Function\(|\beval\(/, name);
    }
  });
});
