// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// subscribeGrace is how long a subscription may take to say its first word
	// before the node joins again: a WireGuard handshake (5 s retry) and a few
	// lost packets fit.
	subscribeGrace = 15 * time.Second
	// failoverGrace is the same where there are other gateways to turn to.
	failoverGrace = 6 * time.Second
	// shakeFirst is the pause after the first attempt at a new WireGuard session,
	// which doubles until it is shakeEach. Each attempt voids the one before: an
	// answer that takes longer is lost, and a gateway to which hundreds of nodes
	// come at once takes longer. With each round in which no gateway was heard the
	// first pause is four times as long, and the longest twice, up to shakeMost.
	shakeEach, shakeFirst = 2 * time.Second, 250 * time.Millisecond
	shakeMost             = 16 * time.Second
	// settleTimeout bounds the wait for a new plan to be in force.
	settleTimeout = 2 * time.Second
	// lostGrace is how long a gateway may be away before the node is not
	// healthy: a restart fits.
	lostGrace = time.Minute
	// leaveTimeout bounds the last calls of a node that keeps nothing, and leaveFirst
	// the first one.
	leaveTimeout, leaveFirst = 2 * time.Second, time.Second
)

// sessions makes WireGuard sessions. A wg.Device does.
type sessions interface {
	// Handshake asks a peer for a new session in place of the one of now. An
	// unknown key is no error.
	Handshake(key mesh.WireGuardKey)
	// Stats says when the last ones were made.
	Stats() (mesh.InterfaceStats, error)
}

// leave ends the membership of a node that forgets its key, so that its id is
// free for the next one. ctx has ended.
func (f *follower) leave(ctx context.Context) {
	if f.cfg.DataDir != "" || !f.isMember() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	gate, at, err := f.gateway()
	if err == nil && !f.leaveInPublic(ctx, gate.ID) {
		err = f.cfg.Mesh(at).Leave(ctx, string(f.node.cfg.ID))
	}
	if err != nil {
		f.node.log.Warn("did not leave the mesh; remove the node before one of its id joins again", "err", err)
	}
}

// leaveInPublic tells a gateway on its public address that the node leaves, if it can.
// Over the mesh hardly any answer comes: who has left is no peer of the gateway any
// more when it answers, and would wait for the whole time.
func (f *follower) leaveInPublic(ctx context.Context, gate mesh.NodeID) (left bool) {
	client, err := f.inPublic(gate)
	if err == nil && client == nil {
		return false
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, leaveFirst)
		defer cancel()
		err = client.Leave(ctx, string(f.node.cfg.ID))
	}
	if err != nil {
		f.node.log.Debug("did not leave the mesh at the public address of the gateway, trying over the mesh", "gateway", string(gate), "err", f.explain(err))
	}
	return err == nil
}

// subscribe follows the gateway over the mesh. The stream has to say its first
// word soon.
func (f *follower) subscribe(ctx context.Context) (alive bool, err error) {
	// The way to the gateway is in the plan; it has to be in force first.
	if err := f.settle(ctx); err != nil {
		return false, err
	}
	gate, at, err := f.gateway()
	if err != nil {
		return false, err
	}
	f.asks = append(f.asks, string(gate.ID))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The gateway may have started anew since the session was made.
	ended := make(chan struct{})
	heard := make(chan struct{})
	go func() {
		defer close(ended)
		f.shake(ctx, gate.PublicKey.WireGuard(), pausesAfter(f.failed), heard)
	}()
	defer func() { cancel(nil); <-ended }()
	seeking, found := context.WithCancel(ctx)
	sought := make(chan struct{})
	go func() {
		defer close(sought)
		f.seekRelays(seeking, gate.ID, gate.PublicKey.WireGuard())
	}()
	defer func() { found(); <-sought }()
	patience := subscribeGrace
	if len(f.candidates()) > 1 {
		patience = failoverGrace
	}
	grace := time.AfterFunc(patience, func() {
		cancel(fmt.Errorf("%w: gateway %s did not answer over the mesh within %s", mesh.ErrUnavailable, at, patience))
	})
	defer grace.Stop()
	err = f.cfg.Mesh(at).SubscribePeers(ctx, string(f.node.cfg.ID), f.revision(), func(c *v1.PeerConfigurations) error {
		// What is heard is told in place of what the node knows, relay servers and all.
		found()
		<-sought
		if err := f.update(c); err != nil {
			return err
		}
		if !alive {
			f.node.log.Info("gateway heard", "gateway", string(gate.ID), "addr", at.String())
			alive = true
			grace.Stop()
			close(heard)
			f.lost.Store(nil)
		}
		return nil
	})
	if alive {
		now := time.Now()
		f.lost.Store(&now)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return alive, err
}

// settle waits until the data plane follows what the node knows: for the first
// plan as long as it takes, for a later one not for long, because there may be
// a way all the same.
func (f *follower) settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-f.node.ready:
	}
	f.mu.Lock()
	version := f.latest.Version
	f.mu.Unlock()
	short, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	_ = f.node.inForce.wait(short, version)
	return ctx.Err()
}

// pauses are those between attempts at a session.
type pauses struct{ first, longest time.Duration }

// pausesAfter returns those after rounds in which no gateway was heard.
func pausesAfter(failed int) pauses {
	failed = min(failed, 3)
	longest := min(shakeEach<<failed, shakeMost)
	return pauses{min(shakeFirst<<(2*failed), longest/2), longest}
}

// shake asks the gateway for a new session, again and again until there is one,
// the gateway is heard or ctx ends. A gateway that has no time for the first word
// yet is asked for no other session: that would void what is on its way.
func (f *follower) shake(ctx context.Context, key mesh.WireGuardKey, p pauses, heard <-chan struct{}) {
	began := time.Now()
	for wait := p.first; !f.shaken(key, began); wait = min(2*wait, p.longest) {
		f.sessions.Handshake(key)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-heard:
		case <-timer.C:
			continue
		}
		timer.Stop()
		return
	}
}

// shaken reports whether a session with a peer was made after a time.
func (f *follower) shaken(key mesh.WireGuardKey, after time.Time) bool {
	stats, err := f.sessions.Stats()
	return err == nil && slices.ContainsFunc(stats.Peers, func(p mesh.PeerStats) bool {
		return p.PublicKey == key && p.LastHandshake.After(after)
	})
}

// healthy is nil while a gateway is heard, or was not long ago.
func (f *follower) healthy() error {
	if lost := f.lost.Load(); lost != nil && time.Since(*lost) > lostGrace {
		return fmt.Errorf("%w: no gateway has been heard since %s; the node goes on with what it knew then",
			mesh.ErrUnavailable, lost.UTC().Format(time.RFC3339))
	}
	return nil
}
