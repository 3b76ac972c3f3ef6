// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/ipam"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/turn/xdp"
)

// parsedSettings are the settings of up that are more than text and numbers.
type parsedSettings struct {
	id                    mesh.NodeID
	mode                  wg.Mode
	exposed               []node.Expose
	routes                []netip.Prefix
	static                map[mesh.NodeID]netip.Addr
	relayLow, relayHigh   uint16
	turnOpen, turnProxies []netip.Prefix
	xdp                   xdp.Mode
}

// parse reads the settings, and refuses those that can never work, whatever the host
// is like. It comes before anything is written: a data directory belongs to an id
// from its first start on, and who mends a setting may want another one.
func (c *upConfig) parse() (s parsedSettings, err error) {
	if s.id, err = nodeID(c.id); err != nil {
		return s, err
	}
	if s.mode, err = wireguardMode(c.wgMode); err != nil {
		return s, err
	}
	if s.exposed, err = parseExposes(c.expose); err != nil {
		return s, err
	}
	if s.routes, err = parseRoutes(c.routes); err != nil {
		return s, err
	}
	if err := c.checkListeners(); err != nil {
		return s, err
	}
	if err := gateway.CheckOrigins(c.origins); err != nil {
		return s, usagef("--cors.origins: %w", err)
	}
	if err := c.parseTURN(&s); err != nil {
		return s, err
	}
	if s.static, err = parseStatic(c.staticIPv4); err != nil {
		return s, err
	}
	if _, err := ipam.New(s.static); err != nil {
		return s, usagef("--mesh.static-ipv4: %w", err)
	}
	if network := netip.MustParsePrefix(c.meshIPv4); c.makesMesh() {
		if id, ok := outside(s.static, network); ok {
			return s, usagef("--mesh.static-ipv4 %s=%s: that is none for a node in --mesh.ipv4-network %s", id, s.static[id], network)
		}
	}
	return s, c.checkNode(s)
}

// checkListeners refuses what is no address to listen on. Empty is none, or any port.
func (c *upConfig) checkListeners() error {
	for _, l := range []struct{ flag, text, network, example string }{
		{"listen", c.listen, "tcp", ":8443"},
		{"metrics.listen", c.metricsListen, "tcp", "127.0.0.1:9090"},
		{"ice.listen", c.iceListen, "udp", ":3479"},
		{"turn.listen", c.turnListen, "udp", ":3478"},
	} {
		if l.text == "" {
			continue
		}
		_, port, err := net.SplitHostPort(l.text)
		if err == nil {
			_, err = net.LookupPort(l.network, port)
		}
		if err != nil {
			return usagef("--%s %q: write it as HOST:PORT or :PORT, such as %s", l.flag, l.text, l.example)
		}
	}
	return nil
}

// parseTURN reads the settings of TURN.
func (c *upConfig) parseTURN(s *parsedSettings) (err error) {
	if s.relayLow, s.relayHigh, err = portRange(c.turnPorts); err != nil {
		return err
	}
	if s.turnOpen, err = networks("--turn.allow-peers", c.turnAllowPeers); err != nil {
		return err
	}
	if s.turnProxies, err = networks("--turn.trusted-proxies", c.turnProxies); err != nil {
		return err
	}
	if s.xdp, err = xdp.ParseMode(c.turnXDP); err != nil {
		return usagef("--turn.xdp: %w", err)
	}
	return nil
}

// checkNode refuses what the node would.
func (c *upConfig) checkNode(s parsedSettings) error {
	cfg := node.Config{
		ID: s.id, Mode: s.mode, MTU: c.wgMTU, Expose: s.exposed, KeepSources: !c.masquerade, Exit: c.exit,
		Features: c.features(s.mode), Hold: &node.Hold{},
	}
	return cfg.Validate()
}

// makesMesh says whether the gateway makes a mesh: it joins no other gateways, and
// its data directory has none. Only then the network is that of the flag for certain.
func (c *upConfig) makesMesh() bool {
	if c.cluster.gateway.URL != "" {
		return false
	}
	if c.dataDir == "" {
		return true
	}
	for _, name := range []string{meshFile, stateDir} {
		if _, err := os.Lstat(filepath.Join(c.dataDir, name)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// outside finds a node whose static address is none for it in network.
func outside(static map[mesh.NodeID]netip.Addr, network netip.Prefix) (mesh.NodeID, bool) {
	for _, id := range slices.Sorted(maps.Keys(static)) {
		if !ipam.Usable(network, static[id]) {
			return id, true
		}
	}
	return "", false
}

// tellOutside says which static addresses no node can have, because the mesh was made
// with another network. The gateway serves all the same: nodes that are in the mesh
// keep what they have.
func (s *parsedSettings) tellOutside(network netip.Prefix, log *slog.Logger) {
	rest := maps.Clone(s.static)
	for id, ok := outside(rest, network); ok; id, ok = outside(rest, network) {
		log.Warn("the static address is none for a node in the network of the mesh, so that the node cannot join; assign another one",
			"flag", "--mesh.static-ipv4", "node", string(id), "addr", rest[id].String(), "network", network.String())
		delete(rest, id)
	}
}

// otherNodeAdvice adds to the error that the data directory dir is that of another node
// what to do about it.
func otherNodeAdvice(err error, dir string) error {
	return fmt.Errorf("%w; start with the --id that %s belongs to, or with another --data-dir", err, dir)
}
