// SPDX-License-Identifier: Apache-2.0

//go:build race

package signaling_test

// transferSize is smaller under the race detector, which makes SCTP some
// fifteen times slower.
const transferSize = 6 << 20
