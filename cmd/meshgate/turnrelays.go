// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/turn"
)

// turnRelays is the TURN server of a gateway as the API shows it to operators.
type turnRelays struct {
	server *turn.Server
	log    *slog.Logger
}

var _ api.Relays = turnRelays{}

// relays is the TURN server for operators; nil for none.
func (p *gatewayProcess) relays() api.Relays {
	if p.turn == nil {
		return nil
	}
	return turnRelays{p.turn, p.log}
}

// Allocations implements api.Relays.
func (r turnRelays) Allocations() []api.Allocation {
	held := r.server.Allocations()
	list := make([]api.Allocation, 0, len(held))
	for _, a := range held {
		list = append(list, api.Allocation{
			ID: a.ID, User: a.User, Client: a.Client, Transport: transportName(a.Stream, a.Secure), Relayed: a.Relayed, TCP: a.TCP,
			Since: a.Since, Expires: a.Expires, Permissions: a.Permissions, Channels: a.Channels, Connections: a.Connections,
			SentPackets: a.SentPackets, SentBytes: a.SentBytes, ReceivedPackets: a.ReceivedPackets, ReceivedBytes: a.ReceivedBytes,
		})
	}
	return list
}

// transportName is how the API names what a client of TURN speaks.
func transportName(stream, secure bool) string {
	switch {
	case secure:
		return "TLS"
	case stream:
		return "TCP"
	default:
		return "UDP"
	}
}

// CloseAllocation implements api.Relays.
func (r turnRelays) CloseAllocation(id string) bool {
	ok := r.server.CloseAllocation(id)
	if ok {
		r.log.Info("relay ended: an operator closed it", "id", id)
	}
	return ok
}

// CloseUser implements api.Relays.
func (r turnRelays) CloseUser(user string) int {
	n := r.server.Evict(user)
	if n > 0 {
		r.log.Info("relays ended: an operator closed those of their user", "user", user, "n", n)
	}
	return n
}
