// SPDX-License-Identifier: Apache-2.0

// Runs the measurements of page.ts in Chromium for the Go program: each line
// on standard input is a function's name and arguments, each line on standard
// output its result. It ends with its input.

import { createInterface } from "node:readline";
import { Tab } from "../../e2e/browser/harness.js";

/** Only the other program knows which function gets which arguments. */
type Measurements = Record<string, (...args: unknown[]) => unknown>;

const url = process.argv[2];
if (url === undefined) {
  throw new Error("the URL of a page is missing");
}
const tab = await Tab.open<Measurements>(url, new URL("page.ts", import.meta.url));
try {
  console.log("true");
  for await (const line of createInterface({ input: process.stdin })) {
    const { name, args } = JSON.parse(line);
    const answer = await tab.run(name, ...args).then(
      (value: unknown) => ({ value }),
      (error: unknown) => ({ error: String(error) }),
    );
    console.log(JSON.stringify(answer));
  }
} finally {
  await tab.close();
}
