// SPDX-License-Identifier: Apache-2.0

//go:build !linux || android

package wg

import "golang.zx2c4.com/wireguard/conn"

// newNative returns the UDP bind for packets of mtu in the tunnel.
func newNative(int) conn.Bind { return withFamilies(conn.NewDefaultBind()) }

// newLean returns the UDP bind of a lean device.
func newLean(int) conn.Bind { return &lean{control: func(int, bool) {}} }
