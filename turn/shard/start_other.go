// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package shard

// lane is what an engine knows of a port.
type lane struct{}

// start runs the books on goroutines.
func (s *Shard) start(b *books) error {
	for _, l := range b.cfg.Listeners {
		l.owned.Store(true)
	}
	return s.startPortable(b)
}

// keepsWhole: there is no way to keep datagrams from being cut that all systems have.
const keepsWhole = false

func (p *port) keepWhole(bool) {}
