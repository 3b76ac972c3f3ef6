// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"os"
)

// othersRead are the bits of a file's mode that let everybody of the host at it.
const othersRead = 0o007

// warnOfTURN tells of settings of TURN that can be, and that are hardly meant: at is
// where it listens, low to high are the ports of relays.
func (p *gatewayProcess) warnOfTURN(at netip.AddrPort, low, high uint16) {
	for _, f := range []struct{ flag, path string }{
		{"--turn.secret-file", p.cfg.turnSecretFile}, {"--turn.users-file", p.cfg.turnUsersFile},
	} {
		if f.path == "" {
			continue
		}
		if info, err := os.Stat(f.path); err == nil && info.Mode().Perm()&othersRead != 0 {
			p.log.Warn("a file of TURN is open to every user of this host: chmod o= it, and change what is in it if others may have read it", "flag", f.flag, "file", f.path, "mode", info.Mode().Perm())
		}
	}
	for _, l := range []struct {
		flag string
		port uint16
	}{
		{"--turn.listen", at.Port()}, {"--ice.listen", portOf(p.cfg.iceListen, 0)}, // that of WireGuard is within the usual range
	} {
		if low <= l.port && l.port <= high {
			p.log.Warn("a port of the gateway is within --turn.relay-ports: no relay gets it, and it may be open in the firewall without being meant to", "flag", l.flag, "port", l.port)
		}
	}
	if at.Addr().IsLoopback() && !p.address.IsLoopback() {
		p.log.Warn("TURN listens at loopback alone, where no other host reaches it", "flag", "--turn.listen", "listens", at, "public_address", p.address)
	}
}
