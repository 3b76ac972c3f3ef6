// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/hostnet"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// joinConfig is what the flags of join say, as typed.
type joinConfig struct {
	gateway access

	dataDir, id   string
	again         bool
	publicAddress string
	zone          string
	expose        []string
	routes        []string
	masquerade    bool
	exit          bool
	exitNode      string
	exitOpen      bool
	wgMode        string
	wgPort        uint16
	wgInterface   string
	wgMTU         int
	iceListen     string
	metricsListen string
	logLevel      string
	logFormat     string
}

func (c *joinConfig) register(f *pflag.FlagSet) {
	f.String("config", "", "YAML file with any of these flags as keys")
	c.gateway.registerTrust(f)
	f.StringVar(&c.dataDir, "data-dir", "", "where identity and membership are kept, so that a restart needs no token; set to \"\" the node is forgotten when it ends (default: nodes/ID in /var/lib/meshgate, or in ~/.local/state/meshgate without root)")
	f.BoolVar(&c.again, "again", false, "join anew although this node was removed from the mesh; needs a token")
	f.StringVar(&c.id, "id", "", "the node's id (default: the host's name)")
	f.StringVar(&c.publicAddress, "public-address", "", "IP address at which others reach this node; empty for a node that only calls out")
	f.StringVar(&c.zone, "zone", "", "zone awareness id: nodes of one zone prefer each other's local addresses")
	f.StringArrayVar(&c.expose, "expose", nil, "make a service of this host reachable on the mesh: tcp:8080=127.0.0.1:3000 (repeat for more)")
	f.StringSliceVar(&c.routes, "routes", nil, "networks that this node offers to reach")
	f.BoolVar(&c.masquerade, "masquerade", true, "in tun mode, let packets of the mesh leave for --routes with this host's own address; without, these networks need a route to the mesh")
	f.BoolVar(&c.exit, "exit", false, "in tun mode, offer this node to others as their way to the Internet: who chooses it with --exit-node has its packets leave with this host's address, as far as network ACLs let it; private networks stay closed but for --routes")
	f.StringVar(&c.exitNode, "exit-node", "", "id of the node through which this node, in tun mode with its host, reaches the Internet; meshgate exit changes it while the node runs")
	f.BoolVar(&c.exitOpen, "exit-open", false, "while there is no way to --exit-node, let packets to the Internet leave in the usual way; without, they are not sent")
	f.StringVar(&c.wgMode, "wireguard.mode", "auto", "tun, netstack (no root), or auto: tun where the host allows it")
	f.Uint16Var(&c.wgPort, "wireguard.listen-port", 0, "UDP port of WireGuard; 0 lets the host pick, which does not go with --public-address")
	f.StringVar(&c.wgInterface, "wireguard.interface", "meshgate0", "name of the interface in tun mode")
	f.IntVar(&c.wgMTU, "wireguard.mtu", 0, "MTU of the mesh, 1280 to 65535; 0 is 1420, or what the way to the gateways leaves if that is less")
	f.StringVar(&c.iceListen, "ice.listen", ":0", "UDP address for DataChannels that end at this node")
	f.StringVar(&c.metricsListen, "metrics.listen", "", "address of /metrics; empty for none")
	f.StringVar(&c.logLevel, "log.level", "info", "debug, info, warn or error")
	f.StringVar(&c.logFormat, "log.format", "text", "text or json")
}

func (a *app) joinCommand() *cobra.Command {
	c := &joinConfig{}
	cmd := &cobra.Command{
		Use:   "join URL",
		Short: "run a node behind a gateway",
		Args:  args(cobra.ExactArgs(1), "the URL of a gateway: meshgate join https://gate.example.org:8443 --token-file FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, _ := cmd.Flags().GetString("config")
			if path == "" {
				path = os.Getenv(envName("config"))
			}
			if err := fromSources(cmd.Flags(), path); err != nil {
				return err
			}
			c.gateway.URL = args[0]
			if err := c.place(cmd.Flags()); err != nil {
				return err
			}
			return flagged("join", a.join(cmd.Context(), c))
		},
	}
	c.register(cmd.Flags())
	return cmd
}

// join runs a node that follows a gateway until ctx ends.
func (a *app) join(ctx context.Context, c *joinConfig) (err error) {
	log, err := a.newLogger(c.logLevel, c.logFormat)
	if err != nil {
		return err
	}
	o, err := c.options(log)
	if err != nil {
		return err
	}
	c.gateway.dialer = o.config.Outbound.DialContext
	if o.gateway, err = c.gateway.connect(ctx); err != nil {
		return err
	}
	defer o.gateway.Close()
	if o.trust, err = c.gateway.tls(); err != nil {
		return err
	}
	o.told = &meshgatev1.GatewayTrust{Authorities: c.gateway.authorities, Url: o.gateway.URL(), Pin: c.gateway.Pin}
	home, err := openHome(c.dataDir, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, home.close(err)) }() // let go of last
	if o.config.Key, err = loadKey(c.dataDir); err != nil {
		return err
	}
	if c.metricsListen != "" {
		var lc net.ListenConfig
		if o.metrics, err = lc.Listen(ctx, "tcp", c.metricsListen); err != nil {
			return err
		}
	}
	log.Info("starting", "version", version, "commit", commit, "data_dir", c.dataDir, "gateway", c.gateway.URL)
	p, err := newNodeProcess(o)
	if err != nil {
		return o.foresee(ctx, err)
	}
	home.asked = true
	err = p.run(ctx, func() error {
		self := p.node.Snapshot().Node(p.node.Self())
		if a.structured() {
			r := ready{Event: "ready", URL: c.gateway.URL}
			for _, addr := range self.Addrs() {
				r.Nodes = append(r.Nodes, readyNode{ID: string(self.ID), Address: addr.String()})
			}
			return a.print(r)
		}
		log.Info("node is up", "node", string(self.ID), "addr", self.Addrs())
		return nil
	})
	if ctx.Err() != nil {
		log.Info("stopped")
	}
	return err
}

// place finds out who the node is and where it keeps that: a data directory
// that was given knows its node, and a node that was given has a directory.
func (c *joinConfig) place(f *pflag.FlagSet) error {
	given := f.Changed("data-dir")
	if c.id == "" && c.dataDir != "" {
		c.id = string(node.SavedID(c.dataDir))
	}
	id, err := nodeID(c.id)
	if err != nil {
		return err
	}
	c.id = string(id)
	if given {
		return nil
	}
	base := defaultDataDir
	if os.Geteuid() != 0 {
		if base, err = stateHome(); err != nil {
			return fmt.Errorf("find a place for the node's identity (give --data-dir): %w", err)
		}
	}
	c.dataDir = filepath.Join(base, "nodes", c.id)
	return nil
}

// stateHome is where programs of this user keep state, by the XDG base
// directory specification.
func stateHome() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "meshgate"), nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state", "meshgate"), err
}

// options turns flags into what a node process needs, but for the key and the
// gateway.
func (c *joinConfig) options(log *slog.Logger) (nodeOptions, error) {
	o := nodeOptions{iceListen: c.iceListen, dataDir: c.dataDir, again: c.again, log: log}
	var err error
	if c.publicAddress != "" {
		if _, err := netip.ParseAddr(c.publicAddress); err != nil {
			return o, usagef("--public-address %q: want an IP address", c.publicAddress)
		}
		// Each start would pick another one, and only a token could tell the mesh.
		if c.wgPort == 0 {
			return o, usagef("--public-address %s: others have to know the port there, too; give --wireguard.listen-port, such as 51820", c.publicAddress)
		}
	}
	cfg := node.Config{
		PrimaryEndpoint: c.publicAddress, Zone: c.zone,
		ListenPort: c.wgPort, InterfaceName: c.wgInterface, MTU: c.wgMTU, KeepSources: !c.masquerade,
		Exit: c.exit, ExitOpen: c.exitOpen, Outbound: new(hostnet.Outbound),
	}
	if c.exitNode != "" {
		if cfg.ExitNode, err = nodeID(c.exitNode); err != nil {
			return o, usagef("--exit-node %q: %w", c.exitNode, err)
		}
	} else if c.exitOpen {
		return o, usagef("--exit-open says what happens without a way to --exit-node; give that, too")
	}
	if cfg.ID, err = nodeID(c.id); err != nil {
		return o, err
	}
	if cfg.Mode, err = wireguardMode(c.wgMode); err != nil {
		return o, err
	}
	if cfg.Expose, err = parseExposes(c.expose); err != nil {
		return o, err
	}
	if cfg.Routes, err = parseRoutes(c.routes); err != nil {
		return o, err
	}
	o.config = cfg
	return o, nil
}

// loadKey reads the identity from dir, or makes one for this run only.
func loadKey(dir string) (mesh.PrivateKey, error) {
	if dir == "" {
		return mesh.GenerateKey()
	}
	return node.LoadKey(dir)
}
