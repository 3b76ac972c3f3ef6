// SPDX-License-Identifier: Apache-2.0

const byteUnits = ["B", "kB", "MB", "GB", "TB", "PB"] as const;

/** 1536 -> "1.5 kB". Units of 1000, three significant digits at most. */
export function bytes(count: number): string {
  let value = Math.max(0, count);
  let unit = 0;
  while (value >= 999.5 && unit < byteUnits.length - 1) {
    value /= 1000;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  // "1.50" says no more than "1.5".
  const text = value.toFixed(digits).replace(/\.?0+$/, digits === 0 ? "$&" : "");
  return `${text} ${byteUnits[unit]}`;
}

/** Milliseconds as a length of time in its two largest units: "3 d 4 h", "12 s". */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const parts: [number, string][] = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [seconds % 60, "s"],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  if (first < 0) {
    return "0 s";
  }
  return parts
    .slice(first, first + 2)
    .filter(([value], i) => i === 0 || value > 0)
    .map(([value, unit]) => `${value} ${unit}`)
    .join(" ");
}

/** How long ago something was: "just now", "12 s ago", "3 d 4 h ago"; "never" without a time. */
export function ago(then: Date | undefined, now: number): string {
  if (then === undefined) {
    return "never";
  }
  const ms = now - then.getTime();
  return ms < 2000 ? "just now" : `${duration(ms)} ago`;
}

/** A round-trip time: "0.4 ms", "12 ms". */
export function milliseconds(ms: number): string {
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

/** "1 node", "2 nodes". */
export function count(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

/** Moment of a transcript line, to the millisecond. */
export function clock(date: Date): string {
  const pad = (value: number, width: number) => String(value).padStart(width, "0");
  return `${pad(date.getHours(), 2)}:${pad(date.getMinutes(), 2)}:${pad(date.getSeconds(), 2)}.${pad(date.getMilliseconds(), 3)}`;
}

/**
 * Characters that change how the text around them is read: controls, direction
 * overrides and isolates, zero-width characters, byte order marks.
 */
const deceptive =
  /[\p{Cc}\u061C\u115F\u1160\u200B-\u200F\u2028-\u202E\u2060-\u206F\u3164\uFEFF\uFFA0\uFFF9-\uFFFB]/gu;

/**
 * A name from a peer, safe to put beside other text: it can neither hide
 * characters nor turn the reading direction. Markup needs no care, because text
 * never becomes markup.
 */
export function label(text: string): string {
  return text.replace(deceptive, (char) => `\\u{${char.codePointAt(0)?.toString(16)}}`);
}

/** "host:port" with brackets where IPv6 needs them. */
export function hostPort(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}
