// SPDX-License-Identifier: Apache-2.0

//go:build !linux && !darwin && !freebsd && !openbsd && !windows

package wg

import (
	"github.com/meshgate/meshgate/node/mesh"
	"golang.zx2c4.com/wireguard/tun"
)

// createTUN refuses: the system has no such interfaces, or we do not know them.
func createTUN(string, int) (tun.Device, error) { return nil, mesh.ErrUnsupported }
