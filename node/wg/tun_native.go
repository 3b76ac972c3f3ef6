// SPDX-License-Identifier: Apache-2.0

//go:build darwin || freebsd || openbsd || windows

package wg

import "golang.zx2c4.com/wireguard/tun"

// createTUN creates a network interface; it needs the right to.
func createTUN(name string, mtu int) (tun.Device, error) { return tun.CreateTUN(name, mtu) }
