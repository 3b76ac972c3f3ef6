// SPDX-License-Identifier: Apache-2.0

package main

import (
	"sync/atomic"

	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node/mesh"
)

// registerTURNLimits has flags set what users of TURN may take.
func (c *upConfig) registerTURNLimits(f *pflag.FlagSet) {
	const again = "; read again when the configuration file changes"
	l := &c.turnLimits
	f.IntVar(&l.RelaysPerUser, "turn.allocations-per-user", 15, "relays that one user of TURN may hold; a browser takes three for each node that it is connected to"+again)
	f.IntVar(&l.Relays, "turn.relays", 0, "relays that all users of TURN may hold together; 0 is one for each port of --turn.relay-ports, 4096 at most"+again)
	f.IntVar(&l.PermissionsPerUser, "turn.permissions-per-user", 0, "addresses of peers that all relays of one user may talk to; 0 is 16 for each of --turn.allocations-per-user"+again)
	f.IntVar(&l.Permissions, "turn.permissions", 32768, "addresses of peers that the relays of all users may talk to, each counted once for each relay"+again)
	f.IntVar(&l.ChannelsPerUser, "turn.channels-per-user", 0, "channels that all relays of one user may have; 0 is 16 for each of --turn.allocations-per-user"+again)
	f.IntVar(&l.Channels, "turn.channels", 32768, "channels that the relays of all users may have"+again)
	f.Int64Var(&l.BytesPerSecond, "turn.bytes-per-second", 0, "what all relays of one user carry together, both ways; 0 is no bound"+again)
	const minted = " carry together, both ways: the credentials that this gateway mints say so to all gateways; 0 is no bound but that of --turn.bytes-per-second"
	f.Int64Var(&c.turnSessionRate, "turn.session-bytes-per-second", 0, "what all relays of one user who calls nodes, from a browser or a program,"+minted+again)
	f.Int64Var(&c.turnNodeRate, "turn.node-bytes-per-second", 0, "what all relays of one node"+minted+again)
}

// turnSettings are the settings of TURN that hold without a new start as soon as
// the configuration file says something else. Those that a flag or the environment
// gives are stronger than the file, and stay.
func turnSettings() []string {
	return []string{
		"turn.allow-peers", "turn.allocations-per-user", "turn.relays", "turn.permissions-per-user", "turn.permissions",
		"turn.channels-per-user", "turn.channels", "turn.bytes-per-second", "turn.session-bytes-per-second", "turn.node-bytes-per-second",
	}
}

// checkTURNLimits refuses what these flags cannot be.
func (c *upConfig) checkTURNLimits() error {
	l := &c.turnLimits
	for _, v := range []struct {
		flag  string
		n     int64
		least int64
	}{
		{"turn.allocations-per-user", int64(l.RelaysPerUser), 1},
		{"turn.relays", int64(l.Relays), 0},
		{"turn.permissions-per-user", int64(l.PermissionsPerUser), 0},
		{"turn.permissions", int64(l.Permissions), 1},
		{"turn.channels-per-user", int64(l.ChannelsPerUser), 0},
		{"turn.channels", int64(l.Channels), 1},
		{"turn.bytes-per-second", l.BytesPerSecond, 0},
		{"turn.session-bytes-per-second", c.turnSessionRate, 0},
		{"turn.node-bytes-per-second", c.turnNodeRate, 0},
	} {
		switch {
		case v.n >= v.least:
		case v.least == 0:
			return usagef("--%s %d: give 0 or more; docs/config.md says what 0 is", v.flag, v.n)
		default:
			return usagef("--%s %d: give 1 or more; for no TURN at all set --turn.listen to \"\"", v.flag, v.n)
		}
	}
	return nil
}

// mintedRates are what credentials say that the gateway mints: bytes per second; 0 is
// nothing. The zero value is ready; it is safe for concurrent use.
type mintedRates struct{ session, node atomic.Int64 }

func (r *mintedRates) set(c *upConfig) {
	r.session.Store(c.turnSessionRate)
	r.node.Store(c.turnNodeRate)
}

// of is the rate of user, by s, which may be nil: a node carries by its relays what many
// send it, and has another than who calls one.
func (r *mintedRates) of(s *mesh.Snapshot, user string) int64 {
	if s != nil && s.Node(mesh.NodeID(user)) != nil {
		return r.node.Load()
	}
	return r.session.Load()
}
