// SPDX-License-Identifier: Apache-2.0

// Starts what a browser test needs: a demo mesh and a page in Chromium that
// comes from the gateway's origin. Everything has a deadline and is ended.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { type Browser, chromium, type Page } from "playwright-core";
import type * as scenarios from "./scenarios.js";

/** How long anything may take that takes seconds on an idle machine. */
const patienceMs = 180_000;
/** How long a process may take to end in peace. */
const endMs = 20_000;

const root = fileURLToPath(new URL("../../..", import.meta.url));
const binary = process.env.MESHGATE_BINARY ?? `${root}/bin/meshgate`;
const chromiumPath = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** What `meshgate demo --output json` prints when it is ready. */
interface Ready {
  event: string;
  url: string;
  token: string;
  nodes: { id: string; address: string }[];
  services: { node: string; kind: string; host: string; port: number }[];
}

/** A gateway with a stock WireGuard peer and a firewalled node. */
export class Demo {
  readonly ready: Ready;
  readonly #process: ChildProcess;
  readonly #log: string[];

  private constructor(child: ChildProcess, ready: Ready, log: string[]) {
    this.#process = child;
    this.ready = ready;
    this.#log = log;
  }

  /** Starts a demo, with further arguments, and waits until both of its peers are reached. */
  static async start(...args: string[]): Promise<Demo> {
    if (!existsSync(binary)) {
      throw new Error(`${binary} is missing: run make build first, or name another in MESHGATE_BINARY`);
    }
    const child = spawn(binary, ["demo", "--listen", "127.0.0.1:0", "--output", "json", ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    // However this process ends, the other one must not be left behind.
    process.once("exit", () => child.kill("SIGKILL"));
    const log: string[] = [];
    createInterface({ input: child.stderr }).on("line", (line) => log.push(line));
    const lines = createInterface({ input: child.stdout });
    try {
      const [line] = await Promise.race([
        once(lines, "line", { signal: AbortSignal.timeout(patienceMs) }),
        once(child, "exit").then(() => Promise.reject(new Error("it ended at once"))),
      ]);
      const ready: Ready = JSON.parse(String(line));
      return new Demo(child, ready, log);
    } catch (cause) {
      child.kill("SIGKILL");
      throw new Error(`the demo did not start:\n${log.join("\n")}`, { cause });
    }
  }

  /** What the demo logged, for a test that failed. */
  get log(): string {
    return this.#log.join("\n");
  }

  /** A page that comes from the gateway itself. */
  get page(): string {
    return `${this.ready.url}/healthz`;
  }

  /** How a page reaches this gateway. */
  get access(): scenarios.Access {
    return { url: this.ready.url, token: this.ready.token };
  }

  /** A service of a node. */
  service(node: string, kind: string): { node: string; port: number } {
    const found = this.ready.services.find((service) => service.node === node && service.kind === kind);
    if (found === undefined) {
      throw new Error(`the demo has no ${kind} on ${node}`);
    }
    return { node, port: found.port };
  }

  /** Ends the demo, in peace if it listens. */
  async stop(): Promise<void> {
    await this.#end("SIGINT");
  }

  /** Ends the demo as a power cut would. */
  async kill(): Promise<void> {
    await this.#end("SIGKILL");
  }

  async #end(how: NodeJS.Signals): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) {
      return;
    }
    const ended = once(this.#process, "exit");
    this.#process.kill(how);
    const force = setTimeout(() => this.#process.kill("SIGKILL"), endMs);
    await ended;
    clearTimeout(force);
  }
}

/** What a function returns, or resolves to. */
type Result<F> = F extends (...args: never) => infer R ? Awaited<R> : never;

/** Chromium with one page that has the exports of a module S loaded. */
export class Tab<S = typeof scenarios> {
  readonly #browser: Browser;
  readonly #page: Page;

  private constructor(browser: Browser, page: Page) {
    this.#browser = browser;
    this.#page = page;
  }

  /**
   * Opens a page and adds the exports of a file to it. It has to come over the network:
   * Chromium lets a page that was made up reach no local address. The policy of
   * the gateway's own pages allows no script of ours, so it is switched off.
   */
  static async open<S = typeof scenarios>(
    url: string,
    file = new URL("scenarios.ts", import.meta.url),
  ): Promise<Tab<S>> {
    const browser = await chromium.launch({
      executablePath: chromiumPath,
      timeout: patienceMs,
      args: [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-features=WebRtcHideLocalIpsWithMdns",
      ],
    });
    try {
      const page = await browser.newPage({ bypassCSP: true });
      const script = await bundle(file);
      await page.goto(url, { timeout: patienceMs });
      await page.addScriptTag({ content: script });
      return new Tab<S>(browser, page);
    } catch (error) {
      await browser.close();
      throw error;
    }
  }

  /** Runs a scenario in the page. */
  async run<K extends keyof S & string>(
    name: K,
    ...args: S[K] extends (...args: infer A) => unknown ? A : never
  ): Promise<Result<S[K]>> {
    const call = `scenarios.${name}(${args.map((arg) => JSON.stringify(arg)).join(", ")})`;
    const timeout = `new Promise((_, reject) => setTimeout(() => reject(new Error("${name} took too long")), ${patienceMs}))`;
    return this.#page.evaluate<Result<S[K]>>(`Promise.race([${call}, ${timeout}])`);
  }

  /** Closes the browser. */
  async close(): Promise<void> {
    await this.#browser.close();
  }
}

/** A file with the built SDK, as a script for a page. */
async function bundle(file: URL): Promise<string> {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(file)],
    bundle: true,
    format: "iife",
    globalName: "scenarios",
    target: "es2022",
    write: false,
  });
  return outputFiles[0]?.text ?? "";
}
