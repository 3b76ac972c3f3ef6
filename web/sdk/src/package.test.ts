// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { suite, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const src = dirname(fileURLToPath(import.meta.url));
/** What the whole package may weigh, minified and gzipped. */
const maxGzipBytes = 60 * 1024;

/** The sources of the library: no tests, nothing generated. */
async function sources(): Promise<{ path: string; text: string }[]> {
  const entries = await readdir(src, { recursive: true });
  const paths = entries.filter((path) => /\.ts$/.test(path) && !/\.test\.ts$|^gen\/|^testing\//.test(path));
  return Promise.all(paths.map(async (path) => ({ path, text: await readFile(join(src, path), "utf8") })));
}

suite("the package", () => {
  test("is small", async () => {
    const { outputFiles } = await build({
      entryPoints: [join(src, "index.ts")],
      bundle: true,
      minify: true,
      format: "esm",
      target: "es2022",
      write: false,
      logLevel: "silent",
    });
    const bytes = gzipSync(outputFiles[0]?.contents ?? "").byteLength;
    assert.ok(bytes > 10_000 && bytes <= maxGzipBytes, `${bytes} bytes`);
  });

  test("documents each export and each member of an exported interface", async () => {
    for (const { path, text } of await sources()) {
      const lines = text.split("\n");
      let inInterface = false;
      for (const [index, line] of lines.entries()) {
        const isExport =
          /^export (abstract |async )?(class|const|function|interface|type)\b/.test(line) &&
          !/^export type \{/.test(line);
        // Whatever is public can be reached from types.ts, or is a class.
        inInterface =
          (inInterface || (path === "types.ts" && /^export interface .*\{$/.test(line))) && line !== "}";
        const isMember = inInterface && /^ {2}(readonly )?[\w[]/.test(line) && !isExport;
        if (isExport || isMember) {
          const before = lines[index - 1] ?? "";
          assert.match(before, /\*\/$/, `${path}:${index + 1} is not documented: ${line}`);
        }
      }
    }
  });

  test("has small files that say their license", async () => {
    for (const { path, text } of await sources()) {
      assert.ok(text.startsWith("// SPDX-License-Identifier: Apache-2.0\n"), `${path}: no SPDX line`);
      assert.doesNotMatch(text, /as unknown as|export \* from/, path);
      assert.ok(text.split("\n").length <= 400, `${path}: too long`);
    }
  });

  test("depends on Connect and Protobuf alone", async () => {
    const allowed = ["@bufbuild/protobuf", "@connectrpc/connect", "@connectrpc/connect-web"];
    for (const { path, text } of await sources()) {
      for (const [, name = ""] of text.matchAll(/^(?:import|export) .*?from "([^"]+)"|^} from "([^"]+)"/gm)) {
        const isOurs = name.startsWith(".") || name === "";
        assert.ok(
          isOurs || allowed.some((dependency) => name.startsWith(dependency)),
          `${path} imports ${name}`,
        );
      }
    }
  });

  test("compiles the examples of its README", async () => {
    const readme = await readFile(join(src, "../README.md"), "utf8");
    const examples = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, text = ""]) => text.trim());
    assert.ok(examples.length > 0);
    // readme.examples.ts is what the compiler sees: it must hold each example, word for word.
    const compiled = await readFile(join(src, "testing/readme.examples.ts"), "utf8");
    const flat = (text: string) => text.replace(/\s+/g, " ");
    for (const example of examples) {
      assert.ok(
        flat(compiled).includes(flat(example)),
        `${relative(src, "testing/readme.examples.ts")} lacks:\n${example}`,
      );
    }
  });
});
