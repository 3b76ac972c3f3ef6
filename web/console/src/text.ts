// SPDX-License-Identifier: Apache-2.0

import { label } from "./format.ts";

/**
 * Text from afar made fit to look at: line ends are kept, every other control
 * character becomes its picture (U+2400 block), so that nothing is hidden.
 */
export function visibleText(text: string): string {
  return label(
    text
      .replace(/\r\n/g, "\n")
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for.
      .replace(/[\x00-\x08\x0b-\x1f]/g, (char) => String.fromCodePoint(0x2400 + char.charCodeAt(0)))
      .replace(/\x7f/g, "\u2421")
      .replace(/[\t\n]/g, (char) => (char === "\n" ? "\ue00a" : "\ue009")),
  )
    .replace(/\ue00a/g, "\n")
    .replace(/\ue009/g, "\t");
}

/** The classic dump: offset, bytes in hex, printable ASCII. */
export function hexDump(bytes: Uint8Array, width = 16): string {
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; at += width) {
    const row = [...bytes.subarray(at, at + width)];
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = row.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(width * 3 - 1)}  ${text}`);
  }
  return lines.join("\n");
}

/** Bytes from "48 65 6c" or "48656c"; undefined unless all of it is hex pairs. */
export function parseHex(text: string): Uint8Array<ArrayBuffer> | undefined {
  const digits = text.replace(/\s+|0x|[,:]/gi, "");
  if (digits.length % 2 !== 0 || !/^[0-9a-f]*$/i.test(digits)) {
    return undefined;
  }
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

/** What is put after a sent line. */
export type Ending = "lf" | "crlf" | "none" | "hex";

/** The bytes of a send line; undefined when it is not valid hex in hex mode. */
export function encodeLine(line: string, ending: Ending): Uint8Array<ArrayBuffer> | undefined {
  if (ending === "hex") {
    return parseHex(line);
  }
  const tail = ending === "lf" ? "\n" : ending === "crlf" ? "\r\n" : "";
  return new TextEncoder().encode(line + tail);
}

/** True when bytes look like text: valid UTF-8 with hardly any control characters. */
export function looksLikeText(bytes: Uint8Array): boolean {
  const sample = bytes.subarray(0, 4096);
  let controls = 0;
  for (const byte of sample) {
    if (byte === 0) {
      return false;
    }
    if (byte < 0x20 && byte !== 0x09 && byte !== 0x0a && byte !== 0x0d && byte !== 0x1b) {
      controls++;
    }
  }
  // stream: a character may be cut at the end of the sample.
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(sample, { stream: true });
  } catch {
    return false;
  }
  return controls * 20 <= sample.length;
}
