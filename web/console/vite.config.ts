// SPDX-License-Identifier: Apache-2.0

import { rm } from "node:fs/promises";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** Removes what an earlier build left, but not files that belong to the repository. */
function cleanBuild(): Plugin {
  let outDir = "";
  return {
    name: "meshgate-clean-build",
    apply: "build",
    configResolved(config) {
      outDir = resolve(config.root, config.build.outDir);
    },
    async buildStart() {
      await Promise.all(
        ["assets", "index.html"].map((name) => rm(resolve(outDir, name), { recursive: true, force: true })),
      );
    },
  };
}

/**
 * Mode "fake" builds the console over an invented mesh, for design work and for
 * tests. It goes to its own folder and no line of it is in a normal build.
 */
export default defineConfig(({ mode }) => {
  const fake = mode === "fake";
  return {
    base: "./",
    plugins: [svelte(), cleanBuild()],
    resolve: {
      alias: {
        "@meshgate/client": here("../sdk/src/index.ts"),
        $backend: here(fake ? "./src/testing/fake.ts" : "./src/api.ts"),
      },
    },
    build: {
      outDir: fake ? ".fake" : "dist",
      emptyOutDir: false,
      target: "es2022",
      // The policy is default-src 'self': a data: URL would be refused.
      assetsInlineLimit: 0,
      modulePreload: { polyfill: false },
      sourcemap: false,
    },
    server: { host: "127.0.0.1", port: 5173, strictPort: true },
  };
});
