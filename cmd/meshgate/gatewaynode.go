// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/secrets"
	"github.com/meshgate/meshgate/node/store/raftstore"
	"github.com/meshgate/meshgate/node/wg"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/turn"
)

// publicAddress is the address to advertise. A name is resolved once: records
// of nodes hold addresses.
func publicAddress(ctx context.Context, c *upConfig) (netip.Addr, error) {
	if c.publicAddress != "" {
		return netip.ParseAddr(c.publicAddress)
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", c.domain)
	if err != nil || len(found) == 0 {
		return netip.Addr{}, fmt.Errorf("resolve --domain %s (or give --public-address): %w", c.domain, err)
	}
	return found[0].Unmap(), nil
}

// publicIPv6 is an IPv6 address to advertise besides address; invalid for none.
func publicIPv6(c *upConfig, address netip.Addr) netip.Addr {
	if c.dev || address.Is6() && !address.Is4In6() {
		return netip.Addr{}
	}
	if c.publicIPv6 != autoIPv6 {
		a, _ := netip.ParseAddr(c.publicIPv6) // it was validated, or is empty
		return a
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is6() && !p.Addr().Is4In6() && turn.IsPublic(p.Addr()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

func (p *gatewayProcess) openNode(ctx context.Context) error {
	c := p.cfg
	id, mode := p.parsed.id, p.parsed.mode
	key, err := loadKey(c.dataDir)
	if err != nil {
		return err
	}
	if p.cluster, err = p.openCluster(ctx, id, key); err != nil {
		return err
	}
	if err := p.openState(id); err != nil {
		return err
	}
	api, err := p.api()
	if err != nil {
		return err
	}
	features := p.features(mode)
	p.node, err = node.New(node.Config{
		ID: id, Key: key, Mode: mode, InterfaceName: c.wgInterface, ListenPort: c.wgPort, MTU: c.wgMTU,
		PrimaryEndpoint: p.address.String(), OtherEndpoints: p.otherEndpoints(), API: api, Features: features, Expose: p.parsed.exposed,
		Routes: p.parsed.routes, KeepSources: !c.masquerade, Exit: c.exit,
		Hold: &node.Hold{
			Store: p.store, CloseStore: p.store.Close, Replicas: p.store.Addresses, Admin: c.admin,
			Domain: strings.TrimSuffix(c.meshDomain, ".") + ".", IPv4: netip.MustParsePrefix(c.meshIPv4),
			AcceptByDefault: c.policy == "accept", AllowUnprovenJoins: c.allowUnproven, StaticIPv4: p.parsed.static,
			Joined: p.cluster.joined(), Purge: p.purge(),
		},
		Logger: p.log, Registerer: p.registry,
	})
	if err != nil {
		return errors.Join(err, p.store.Close())
	}
	if p.cluster == nil {
		return nil
	}
	p.cluster.keys.from(p.node.Snapshot, storage{p.store, p.node}.seats)
	if p.cluster.seatless() {
		p.joiner, err = p.newJoiner(ctx, id, key, features)
	}
	return err
}

// otherEndpoints are further addresses at which WireGuard is reached.
func (p *gatewayProcess) otherEndpoints() []netip.Addr {
	if !p.address6.IsValid() {
		return nil
	}
	return []netip.Addr{p.address6}
}

// announced returns once the mesh knows this node for a gateway: one that has
// just joined others is a plain member until it has said so.
func (p *gatewayProcess) announced(ctx context.Context) error {
	for after := uint64(0); ; {
		s, err := p.node.Wait(ctx, after)
		if err != nil {
			return err
		}
		if me := s.Node(p.node.Self()); me.HoldsState() {
			return p.node.Applied(ctx, s.Version)
		}
		after = s.Version
	}
}

// openState opens the state, alone or with other gateways.
func (p *gatewayProcess) openState(id mesh.NodeID) (err error) {
	cfg := raftstore.Config{ID: string(id), Logger: p.log, Registerer: p.registry}
	if p.cfg.dataDir != "" {
		cfg.Dir = filepath.Join(p.cfg.dataDir, stateDir)
		if !p.cluster.seatless() {
			err = checkState(p.cfg.dataDir, cfg.Dir)
		}
	}
	if err != nil {
		return err
	}
	if p.cluster != nil {
		cfg.Network, cfg.Address, cfg.Join = p.cluster.replicas, p.cluster.address, p.cluster.joined()
		cfg.DeadAfter = p.cfg.cluster.deadAfter
	}
	switch p.store, err = raftstore.Open(cfg); {
	case errors.Is(err, raftstore.ErrOtherNode):
		return otherNodeAdvice(err, p.cfg.dataDir)
	case err != nil:
		return damageAdvice(fmt.Errorf("open state: %w", err), cfg.Dir)
	}
	p.shared = secrets.New(p.store, p.log)
	return nil
}

// damageAdvice adds to an error that says that the state in dir is damaged what
// to do about it. Nothing is thrown away unasked: the only copy there is may be
// worth more than a backup.
func damageAdvice(err error, dir string) error {
	if !errors.Is(err, raftstore.ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w; leave %s where it is and move %s away, then start with --cluster.join to get a copy from another gateway, "+
		"or, if this is the only one, restore a backup with meshgate restore", err, nodeKeyFile, dir)
}

// stateAdvice says why the gateway, whose state in dir failed with err, ends,
// and what to do about it. One that was removed keeps its key: its id is bound
// to it.
func stateAdvice(err error, dir string) error {
	if errors.Is(err, raftstore.ErrRemoved) {
		return fmt.Errorf("%w; it serves nothing any more; to let it in again, remove %s, leave %s where it is, and start with --cluster.join and --cluster.token-file", err, dir, nodeKeyFile)
	}
	return damageAdvice(fmt.Errorf("the state cannot be kept: %w", err), dir)
}

// features are what the gateway advertises to the mesh.
func (p *gatewayProcess) features(mode wg.Mode) []mesh.Feature {
	list := p.cfg.features(mode)
	if p.cluster != nil {
		list = append(list, mesh.Feature{Kind: v1.Feature_STORAGE_PROVIDER, Port: portOf(p.cluster.address, list[0].Port)})
	}
	return list
}

// features are what every gateway advertises that runs with c.
func (c *upConfig) features(mode wg.Mode) []mesh.Feature {
	port := uint16(meshRPCPort)
	if mode == wg.ModeTUN && portOf(c.listen, 0) == port {
		// On an interface of the host the mesh addresses are the host's own, and
		// the public listener on all addresses has the port there already.
		port++
	}
	list := []mesh.Feature{
		{Kind: v1.Feature_NODES, Port: port},
		{Kind: v1.Feature_MESH_API, Port: port},
		{Kind: v1.Feature_ADMIN_API, Port: port},
		{Kind: v1.Feature_STORAGE_QUERIER, Port: port},
		{Kind: v1.Feature_MEMBERSHIP, Port: port},
		{Kind: v1.Feature_ICE_NEGOTIATION, Port: port},
	}
	if c.turnListen != "" {
		list = append(list, mesh.Feature{Kind: v1.Feature_TURN_SERVER, Port: portOf(c.turnListen, 3478)})
	}
	return list
}
