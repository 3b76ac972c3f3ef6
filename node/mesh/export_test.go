// SPDX-License-Identifier: Apache-2.0

package mesh

// KeyFromSeed lets tests make the same key each time.
func KeyFromSeed(seed []byte) PrivateKey { return keyFromSeed(seed) }
