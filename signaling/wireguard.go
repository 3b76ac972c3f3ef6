// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"errors"
	"fmt"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/signaling/bridge"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// wireGuardDestination is how the node's own device is named to the Authorizer.
func wireGuardDestination() Destination { return Destination{Protocol: "udp", Host: "localhost"} }

// serveWireGuard serves a v1 client that asked for udp port 0: one negotiated
// channel, whose messages are WireGuard packets. It is ordered and reliable,
// because v1 clients make it so.
func (x *session) serveWireGuard() error {
	ch, err := x.peer.Negotiated(rtc.ChannelConfig{ID: controlID, Label: wireGuardLabel})
	if err != nil {
		return err
	}
	over := make(chan struct{})
	x.spawn(func() {
		defer close(over)
		x.attach(ch)
	})
	select {
	case <-over:
		return errors.New("WireGuard channel ended")
	case <-x.svc.ctx.Done():
		return ErrClosed
	case <-x.peer.Closing():
		return x.over()
	}
}

// serveWireGuardChannel serves a channel that an in-band client opened for
// WireGuard packets. The client chose its reliability.
func (x *session) serveWireGuardChannel(ch *rtc.Channel) {
	if err := x.enter(); err != nil {
		x.svc.metrics.opened("wireguard", resultLimit)
		x.refuse()
		discard(ch)
		return
	}
	defer x.memory.leave()
	if _, err := x.authorize(x.ctx, wireGuardDestination()); err != nil {
		x.svc.metrics.opened("wireguard", result(refusal(err).Code))
		x.logger.Debug("WireGuard channel refused", "err", err)
		discard(ch)
		return
	}
	x.attach(ch)
}

// attach gives a channel to the device and waits for its end.
func (x *session) attach(ch *rtc.Channel) {
	if x.svc.cfg.WireGuard == nil {
		x.svc.metrics.opened("wireguard", resultInvalid)
		discard(ch)
		return
	}
	packets := bridge.NewPackets(ch, x.svc.metrics.counter())
	detach, err := x.svc.cfg.WireGuard.Attach(packets)
	if err != nil {
		x.svc.metrics.opened("wireguard", resultError)
		x.logger.Error("attach a data channel to WireGuard", "err", err)
		discard(ch)
		return
	}
	x.svc.metrics.opened("wireguard", resultOK)
	select {
	case <-packets.Done():
	case <-x.ctx.Done():
	}
	detach()
	packets.Finish()
}

// errNoWireGuard is for calls that ask for a device that is not there.
var errNoWireGuard = fmt.Errorf("this node takes no WireGuard packets from data channels: %w", mesh.ErrUnsupported)
