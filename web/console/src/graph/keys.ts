// SPDX-License-Identifier: Apache-2.0

// A node's key is an Ed25519 key, and that of its WireGuard interface the same
// point in its X25519 form. Both are brought to the y coordinate of the point.

const prime = 2n ** 255n - 19n;
const keyBytes = 32;
/** What is before the key in its libp2p form. */
const headerBytes = 4;

/** The point of a node's public key in its libp2p form; undefined for anything else. */
export function pointOfNode(key: string): bigint | undefined {
  const raw = decode(key);
  return raw?.length === headerBytes + keyBytes ? toNumber(raw.subarray(headerBytes)) : undefined;
}

/** The point of a WireGuard public key: y = (u - 1) / (u + 1). Undefined for anything else. */
export function pointOfWireGuard(key: string): bigint | undefined {
  const raw = decode(key);
  if (raw?.length !== keyBytes) {
    return undefined;
  }
  const u = toNumber(raw);
  return ((u + prime - 1n) * power(u + 1n, prime - 2n)) % prime;
}

function decode(text: string): Uint8Array | undefined {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return undefined;
  }
}

/** The number of 255 bits, lowest byte first; the highest bit is a sign, or unused. */
function toNumber(raw: Uint8Array): bigint {
  const digits = [...raw].reverse().map((byte) => byte.toString(16).padStart(2, "0"));
  return BigInt.asUintN(255, BigInt(`0x${digits.join("")}`));
}

function power(base: bigint, exponent: bigint): bigint {
  let result = 1n;
  for (let b = base % prime, e = exponent; e > 0n; e >>= 1n) {
    if ((e & 1n) === 1n) {
      result = (result * b) % prime;
    }
    b = (b * b) % prime;
  }
  return result;
}
