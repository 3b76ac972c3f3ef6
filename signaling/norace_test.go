// SPDX-License-Identifier: Apache-2.0

//go:build !race

package signaling_test

const transferSize = 64 << 20
