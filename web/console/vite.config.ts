// SPDX-License-Identifier: Apache-2.0

import { rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

const here = (path: string): string => fileURLToPath(new URL(path, import.meta.url));

/** Removes what an earlier build left, but not files that belong to the repository. */
function cleanBuild(paths: string[]): Plugin {
  return {
    name: "meshgate-clean-build",
    apply: "build",
    async buildStart() {
      await Promise.all(paths.map((path) => rm(path, { recursive: true, force: true })));
    },
  };
}

/**
 * Mode "fake" builds the console over an invented mesh, for design work and for
 * tests. It goes to its own folder and no line of it is in a normal build.
 */
export default defineConfig(({ mode }) => {
  const fake = mode === "fake";
  const outDir = here(fake ? "./.fake" : "./dist");
  return {
    base: "./",
    plugins: [svelte(), cleanBuild([`${outDir}/assets`, `${outDir}/index.html`])],
    resolve: {
      alias: {
        "@meshgate/client": here("../sdk/src/index.ts"),
        $backend: here(fake ? "./src/testing/fake.ts" : "./src/api.ts"),
      },
    },
    build: {
      outDir,
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
