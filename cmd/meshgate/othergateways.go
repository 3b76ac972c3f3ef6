// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
)

// maxOtherGateways bounds the clients that are kept. A mesh has a handful of
// gateways; where they are changes now and then.
const maxOtherGateways = 128

// otherGateways makes the clients of the gateways that a node hears of, at which
// it shows its key. It is safe for concurrent use.
type otherGateways struct {
	id  mesh.NodeID
	key mesh.PrivateKey
	// first is the gateway that the node was started with, and trust whom it
	// believes there.
	first *peer.Public
	trust peer.TLSOptions

	mu    sync.Mutex // guards known
	known map[otherGateway]*peer.Public
}

// otherGateway is what a client is made for.
type otherGateway struct {
	network string
	id      mesh.NodeID
	api     mesh.API
}

// client is the client of a gateway on its public address.
func (o *otherGateways) client(network string, gate *mesh.Node) (node.Gateway, error) {
	p, err := o.public(network, gate)
	if err != nil {
		return nil, err
	}
	return p.Member(), nil
}

// pairs is the client of a gateway on its public address, for pairs.
func (o *otherGateways) pairs(network string, gate *mesh.Node) (node.PairGateway, error) {
	p, err := o.public(network, gate)
	if err != nil {
		return nil, err
	}
	return p.Pairs(), nil
}

// public makes the clients of a gateway on its public address, or has made them.
func (o *otherGateways) public(network string, gate *mesh.Node) (*peer.Public, error) {
	which := otherGateway{network, gate.ID, gate.API}
	o.mu.Lock()
	defer o.mu.Unlock()
	if p, ok := o.known[which]; ok {
		return p, nil
	}
	sign := func(at time.Time) string { return mesh.SignCredential(o.key, network, o.id, gate.ID, at) }
	p, err := peer.NewPublicNode(gate.API.URL, sign, o.believe(gate.API))
	if err != nil {
		return nil, fmt.Errorf("reach it at its public address: %w", err)
	}
	if len(o.known) >= maxOtherGateways {
		o.closeLocked()
	}
	if o.known == nil {
		o.known = make(map[otherGateway]*peer.Public)
	}
	o.known[which] = p
	return p, nil
}

// believe says whom to believe at an API: where the node was started with it,
// what it was told then; else the key that the mesh names, or the authorities
// that it was told.
func (o *otherGateways) believe(api mesh.API) peer.TLSOptions {
	trust := o.trust
	if api.URL == o.first.URL() && trust.Pin != [sha256.Size]byte{} {
		return trust
	}
	trust.Pin = api.Pin
	return trust
}

// relayTLS says whom to believe as the TURN server at a host: the gateway of s,
// which may be nil, whose API is there, or the one that the node was started with.
func (o *otherGateways) relayTLS(s *mesh.Snapshot, host string) *tls.Config {
	at := mesh.API{URL: o.first.URL()}
	if s != nil {
		for n := range s.Nodes.Gateways() {
			if u, err := url.Parse(n.API.URL); err == nil && u.Hostname() == host {
				at = n.API
			}
		}
	}
	return o.believe(at).Config()
}

// Close ends idle connections.
func (o *otherGateways) Close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closeLocked()
}

func (o *otherGateways) closeLocked() {
	for _, p := range o.known {
		p.Close()
	}
	clear(o.known)
}
