// SPDX-License-Identifier: Apache-2.0

// Starts what a browser test needs: a gateway, or a demo mesh, and a page in Chromium
// that comes from the gateway's origin. Everything has a deadline and is ended.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface, type Interface } from "node:readline";
import { test } from "node:test";
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
/** The program that is Chromium. */
export const chromiumPath = process.env.CHROMIUM ?? "/usr/bin/chromium";

/** What a gateway prints when it is ready, with `--output json`. */
interface Ready {
  event: string;
  url: string;
  token: string;
  /** The address of TURN over UDP and TCP. */
  turn: string;
  nodes: { id: string; address: string }[];
  /** Those of a demo. */
  services?: { node: string; kind: string; host: string; port: number }[];
}

/** A gateway that runs. */
interface Started {
  readonly child: ChildProcess;
  readonly ready: Ready;
  readonly log: string[];
  readonly logging: Interface;
}

/** What has to be in front of a command to run it in the network of this process: nothing. */
const here: readonly string[] = [];

/** Runs a command that is a gateway, and waits until it is ready. */
async function launch(network: readonly string[], command: string, ...args: string[]): Promise<Started> {
  if (!existsSync(binary)) {
    throw new Error(`${binary} is missing: run make build first, or name another in MESHGATE_BINARY`);
  }
  const [program = binary, ...rest] = [...network, binary, command, "--output", "json", ...args];
  const child = spawn(program, rest, { stdio: ["ignore", "pipe", "pipe"] });
  // However this process ends, the other one must not be left behind.
  process.once("exit", () => child.kill("SIGKILL"));
  const log: string[] = [];
  const logging = createInterface({ input: child.stderr }).on("line", (line) => log.push(line));
  const lines = createInterface({ input: child.stdout });
  try {
    const [line] = await Promise.race([
      once(lines, "line", { signal: AbortSignal.timeout(patienceMs) }),
      once(child, "exit").then(() => Promise.reject(new Error("it ended at once"))),
    ]);
    return { child, ready: JSON.parse(String(line)), log, logging };
  } catch (cause) {
    child.kill("SIGKILL");
    throw new Error(`meshgate ${command} did not start:\n${log.join("\n")}`, { cause });
  }
}

/** A gateway. */
export class Gateway {
  readonly ready: Ready;
  readonly #process: ChildProcess;
  readonly #log: string[];
  readonly #lines: Interface;

  protected constructor({ child, ready, log, logging }: Started) {
    this.#process = child;
    this.ready = ready;
    this.#log = log;
    this.#lines = logging;
  }

  /** Starts one for development, on loopback, with further arguments. */
  static async dev(...args: string[]): Promise<Gateway> {
    return new Gateway(await launch(here, "up", "--dev", "--listen", "127.0.0.1:0", ...args));
  }

  /** Starts one in another network, by what has to be in front of a command for that. */
  static async up(network: readonly string[], ...args: string[]): Promise<Gateway> {
    return new Gateway(await launch(network, "up", ...args));
  }

  /** What it logged, for a test that failed. */
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

  /** Waits until it has logged a line with a text in it. */
  async logs(text: string): Promise<void> {
    const deadline = AbortSignal.timeout(patienceMs);
    while (!this.log.includes(text)) {
      deadline.throwIfAborted();
      await once(this.#lines, "line", { signal: deadline });
    }
  }

  /** Tells it to end, as a supervisor does, and does not wait. */
  terminate(): void {
    this.#process.kill("SIGTERM");
  }

  /** Waits until it has ended, and returns its exit code. */
  async ended(): Promise<number | null> {
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      await once(this.#process, "exit", { signal: AbortSignal.timeout(patienceMs) });
    }
    return this.#process.exitCode;
  }

  /** Ends it, in peace if it listens. */
  async stop(): Promise<void> {
    await this.#end("SIGINT");
  }

  /** Ends it as a power cut would. */
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

/** A gateway with a stock WireGuard peer and a firewalled node. */
export class Demo extends Gateway {
  /** Starts a demo, with further arguments, and waits until both of its peers are reached. */
  static async start(...args: string[]): Promise<Demo> {
    return new Demo(await launch(here, "demo", "--listen", "127.0.0.1:0", ...args));
  }

  /** A service of a node. */
  service(node: string, kind: string): { node: string; port: number } {
    const found = this.ready.services?.find((service) => service.node === node && service.kind === kind);
    if (found === undefined) {
      throw new Error(`the demo has no ${kind} on ${node}`);
    }
    return { node, port: found.port };
  }
}

/** What a function returns, or resolves to. */
type Result<F> = F extends (...args: never) => infer R ? Awaited<R> : never;

/** How Chromium is run, if not as usual. */
interface Surroundings {
  /** Whom it believes besides the authorities that it brings is there. */
  readonly home?: string;
  /** The program. */
  readonly program?: string;
}

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
    { home = process.env.HOME, program = chromiumPath }: Surroundings = {},
  ): Promise<Tab<S>> {
    const browser = await chromium.launch({
      executablePath: program,
      timeout: patienceMs,
      env: { ...process.env, ...(home !== undefined && { HOME: home }) },
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

/** The tests of a suite. It shows the log of its gateway when one of them failed. */
export class Stories {
  failed = false;

  /** Adds a test. */
  add(name: string, run: () => Promise<void>): void {
    test(name, async () => {
      try {
        await run();
      } catch (error) {
        this.failed = true;
        throw error;
      }
    });
  }
}
