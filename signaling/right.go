// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// Review asks for every session whether its caller is still allowed to have
// it, and ends those for which it is not. It returns how many these were. Call
// it when credentials or roles may have changed.
func (s *Service) Review() (ended int) {
	s.mu.Lock()
	list := s.census.list()
	s.mu.Unlock()
	for _, x := range list {
		if err := x.stands(); err != nil {
			ended++
			x.logger.Info("peer connection ended: its caller is no longer allowed to have it", "err", err)
			x.peer.Abandon(err)
		}
	}
	return ended
}

// stands is nil while the caller may have the session. It may be asked at any time.
func (x *session) stands() error {
	if x.allowed == nil {
		return nil
	}
	return x.allowed()
}

// authorize asks for the address of a new connection of the session.
func (x *session) authorize(ctx context.Context, d Destination) (netip.AddrPort, error) {
	if err := x.stands(); err != nil {
		if !errors.Is(err, mesh.ErrDenied) { // whoever let the session begin is not asked who it is, but told no
			err = fmt.Errorf("%w: %w", mesh.ErrDenied, err)
		}
		return netip.AddrPort{}, err
	}
	return x.svc.authorize(ctx, x.caller, x.node, d)
}

// telling is out, and tells Config.Candidate of every address that user, who
// gets what goes out, is told by namer to send to.
func (s *Service) telling(user, namer string, out sender) sender {
	tell := s.cfg.Candidate
	if tell == nil {
		return out
	}
	return sender{
		description: func(text string) error {
			for _, at := range rtc.DescriptionAddresses(text) {
				tell(user, namer, at)
			}
			return out.description(text)
		},
		candidate: func(text string) error {
			for _, at := range rtc.CandidateAddresses(text) {
				tell(user, namer, at)
			}
			return out.candidate(text)
		},
	}
}
