// SPDX-License-Identifier: Apache-2.0

//go:build !linux || android

package wg

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
)

// newNative returns the UDP bind.
func newNative() conn.Bind { return withFamilies(conn.NewDefaultBind()) }

// newLean returns the UDP bind of a lean device.
func newLean() conn.Bind { return &lean{control: func(int, bool) {}} }

// linkMTU is the MTU of the link on which the host sends to an address. Where
// packets cannot be sent in fragments of a size, that it is too large to pad for
// leaves them as they are.
func linkMTU(netip.AddrPort) int { return largestMTU + 1 }
