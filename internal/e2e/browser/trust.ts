// SPDX-License-Identifier: Apache-2.0

// A certificate that Chromium believes. Of relays over TLS it verifies the certificate
// as that of any server, whatever is switched off for pages.

import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** An authority of its own, and a home in which Chromium believes it. */
export class Trust {
  /** Chromium looks there for further authorities. */
  readonly home: string;

  private constructor(home: string) {
    this.home = home;
  }

  /** Makes an authority and a certificate of it for some addresses. */
  static async make(...addresses: string[]): Promise<Trust> {
    const trust = new Trust(await mkdtemp(join(tmpdir(), "meshgate-trust-")));
    try {
      await trust.#sign(addresses);
      await trust.#believe();
      return trust;
    } catch (error) {
      await trust.remove();
      throw error;
    }
  }

  /** The certificate of the authority, in PEM. */
  get authorityFile(): string {
    return join(this.home, "authority.pem");
  }

  /** The certificate, in PEM. */
  get certFile(): string {
    return join(this.home, "server.pem");
  }

  /** The key of the certificate, in PEM. */
  get keyFile(): string {
    return join(this.home, "server.key");
  }

  /** Forgets all of it. */
  async remove(): Promise<void> {
    await rm(this.home, { recursive: true, force: true });
  }

  async #sign(addresses: string[]): Promise<void> {
    const config = [
      "[req]",
      "distinguished_name = name",
      "[name]",
      "[authority]",
      "basicConstraints = critical,CA:TRUE",
      "keyUsage = critical,keyCertSign",
      "[server]",
      "basicConstraints = critical,CA:FALSE",
      "extendedKeyUsage = serverAuth",
      `subjectAltName = ${addresses.map((address) => `IP:${address}`).join()}`,
    ];
    await writeFile(join(this.home, "openssl.cnf"), config.join("\n"));
    await this.#request("authority", "-subj", "/CN=an authority of tests");
    await this.#request(
      "server",
      "-subj",
      "/CN=a gateway",
      "-CA",
      "authority.pem",
      "-CAkey",
      "authority.key",
    );
  }

  async #request(name: string, ...args: string[]): Promise<void> {
    const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", `${name}.key`];
    const fixed = ["req", "-x509", "-config", "openssl.cnf", "-extensions", name, "-days", "90", ...key];
    await run("openssl", [...fixed, "-out", `${name}.pem`, ...args], { cwd: this.home });
  }

  async #believe(): Promise<void> {
    const database = join(this.home, ".pki", "nssdb");
    await mkdir(database, { recursive: true });
    const certutil = (...args: string[]) => run("certutil", ["-d", `sql:${database}`, ...args]);
    await certutil("-N", "--empty-password");
    await certutil("-A", "-n", "tests", "-t", "C,,", "-i", this.authorityFile);
  }
}
