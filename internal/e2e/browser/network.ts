// SPDX-License-Identifier: Apache-2.0

// A network of its own, for what a browser does not do on loopback: it follows no
// TURN server that sends it there.

import { execFile } from "node:child_process";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { chromiumPath } from "./harness.js";

const run = promisify(execFile);

/** A network namespace with addresses, from which nothing leads out. */
export class Network {
  /** What has to be in front of a command to run it there. */
  readonly inside: readonly string[];
  readonly #name: string;
  readonly #folder: string;

  private constructor(name: string, folder: string) {
    this.#name = name;
    this.#folder = folder;
    this.inside = ["nsenter", `--net=/run/netns/${name}`, "--"];
  }

  /** Makes a network. Its name ends with the id of this process. */
  static async make(...addresses: string[]): Promise<Network> {
    const name = `meshgate-browser-${process.pid}`;
    await run("ip", ["netns", "add", name]);
    const network = new Network(name, await mkdtemp(join(tmpdir(), "meshgate-network-")));
    try {
      const ip = (...args: string[]) => run("ip", ["-n", name, ...args]);
      // IPv6 gives interfaces addresses seconds later, and Chromium ends all requests
      // when it sees an address come.
      for (const which of ["all", "default"]) {
        const file = `/proc/sys/net/ipv6/conf/${which}/disable_ipv6`;
        await run("nsenter", [...network.inside.slice(1), "sh", "-c", `echo 1 > ${file}`]);
      }
      // Chromium takes no notice of interfaces of loopback, and asks the way to the Internet.
      await ip("link", "add", "cable", "type", "veth", "peer", "name", "end");
      for (const device of ["lo", "end", "cable"]) {
        await ip("link", "set", device, "up");
      }
      for (const address of addresses) {
        await ip("addr", "add", `${address}/24`, "dev", "cable");
      }
      await ip("route", "add", "default", "dev", "cable");
      const script = `#!/bin/sh\nexec ${network.inside.join(" ")} "${chromiumPath}" "$@"\n`;
      await writeFile(network.program, script);
      await chmod(network.program, 0o755);
      return network;
    } catch (error) {
      await network.remove();
      throw error;
    }
  }

  /** Chromium inside. */
  get program(): string {
    return join(this.#folder, "chromium");
  }

  /** Removes it; what runs inside goes on, and reaches nothing new. */
  async remove(): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true });
    await run("ip", ["netns", "del", this.#name]);
  }
}
