// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/node"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/wg"
	"github.com/meshgate/meshgate/node/wg/stock"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	demoPeerID = "phone"
	demoNodeID = "firewalled"
	// demoLogLevel leaves out that peers are not there yet.
	demoLogLevel = "error"
	// demoTimeout bounds the start of the demo; it takes about a second.
	demoTimeout = 60 * time.Second
)

func (a *app) demoCommand() *cobra.Command {
	c := &upConfig{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "a gateway and two peers on this machine",
		Long: "demo starts a gateway on loopback, a stock WireGuard peer that runs no Meshgate and\n" +
			"a firewalled node with outbound traffic only, each with an HTTP page (port 80), a TCP\n" +
			"echo and a UDP echo (port 7), and prints one URL to open. It needs no root, changes\n" +
			"nothing on the host and forgets everything at the end.",
		Args: args(cobra.NoArgs, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.dev = true
			var wrong error
			cmd.Flags().Visit(func(f *pflag.Flag) {
				if f.Hidden {
					wrong = usagef("--%s is a setting of meshgate up, not of the demo", f.Name)
				}
			})
			if wrong != nil {
				return wrong
			}
			// The peers of a demo are not there when the gateway first looks for
			// them, which is worth no word.
			if f := cmd.Flags().Lookup("log.level"); !f.Changed {
				if err := cmd.Flags().Set("log.level", demoLogLevel); err != nil {
					return err
				}
			}
			if err := c.load(cmd.Flags()); err != nil {
				return err
			}
			return a.demo(cmd.Context(), c)
		},
	}
	c.register(cmd.Flags())
	// A demo keeps nothing and lets nobody else in: only these settings make sense.
	offered := map[string]bool{"listen": true, "expose": true, "cors.origins": true, "metrics.listen": true, "log.level": true, "log.format": true}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !offered[f.Name] {
			f.Hidden = true
		}
		if value, ok := devDefaults()[f.Name]; ok {
			f.DefValue = value // what help and docs show
		}
	})
	cmd.Flags().Lookup("log.level").DefValue = demoLogLevel
	return cmd
}

// demo runs the gateway and, once it serves, its two peers.
func (a *app) demo(ctx context.Context, c *upConfig) error {
	log, err := a.newLogger(c.logLevel, c.logFormat)
	if err != nil {
		return err
	}
	gate, err := newGatewayProcess(ctx, c, log)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	serving := make(chan struct{})
	g.Go(func() error {
		return gate.run(ctx, func() error { close(serving); return nil })
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-serving:
		}
		return a.demoPeers(ctx, gate, log)
	})
	return g.Wait()
}

// demoPeers starts both peers, waits until the gateway reaches their pages and
// says so.
func (a *app) demoPeers(ctx context.Context, gate *gatewayProcess, log *slog.Logger) error {
	to := gate.access()
	opts, err := to.tls()
	if err != nil {
		return err
	}
	public, err := peer.NewPublic(to.URL, to.Token, opts)
	if err != nil {
		return err
	}
	defer public.Close()
	g, ctx := errgroup.WithContext(ctx)
	start, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()

	phone, err := startDemoPeer(start, public)
	if err != nil {
		return err
	}
	defer func() { _ = phone.peer.Close() }() // the process ends with it
	g.Go(func() error { return phone.services.run(ctx) })

	hidden, err := newDemoNode(ctx, public, log)
	if err != nil {
		return err
	}
	g.Go(func() error { return hidden.services.run(ctx) })
	g.Go(func() error { return hidden.process.run(ctx, nil) })

	line := gate.ready()
	for _, id := range []mesh.NodeID{demoPeerID, demoNodeID} {
		address, err := reachable(start, gate.node, id)
		if err != nil {
			cancel()
			return errors.Join(fmt.Errorf("the gateway does not reach %s: %w", id, err), context.Cause(ctx))
		}
		line.Nodes = append(line.Nodes, readyNode{ID: string(id), Address: address})
		for _, s := range []readyService{{Kind: "http", Port: demoHTTPPort}, {Kind: "tcp-echo", Port: demoEchoPort}, {Kind: "udp-echo", Port: demoEchoPort}} {
			s.Node, s.Host = string(id), address
			line.Services = append(line.Services, s)
		}
	}
	if err := a.printDemo(line); err != nil {
		return err
	}
	return g.Wait()
}

type demoPeer struct {
	peer     *stock.Peer
	services *demoServices
}

// startDemoPeer does what an operator does with a phone: it creates the peer
// through the API and starts stock WireGuard with the printed configuration.
func startDemoPeer(ctx context.Context, gate *peer.Public) (_ *demoPeer, err error) {
	key, err := mesh.GenerateKey()
	if err != nil {
		return nil, err
	}
	answer, err := gate.Member().Join(ctx, &v1.JoinRequest{
		Id: demoPeerID, PublicKey: key.Public().Encode(), AssignIpv4: true,
		Services: []*v1.Service{
			{Protocol: "tcp", Port: demoHTTPPort, Kind: "http"},
			{Protocol: "tcp", Port: demoEchoPort, Kind: "tcp-echo"},
			{Protocol: "udp", Port: demoEchoPort, Kind: "udp-echo"},
		},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("create peer: %w", err)
	}
	config, err := wgQuick(demoPeerID, key, answer)
	if err != nil {
		return nil, err
	}
	p, err := stock.New(config)
	if err != nil {
		return nil, fmt.Errorf("start stock peer: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	s := &demoServices{name: demoPeerID}
	if s.page, err = p.Listen(demoHTTPPort); err != nil {
		return nil, err
	}
	if s.echo, err = p.Listen(demoEchoPort); err != nil {
		return nil, err
	}
	if s.udp, err = p.ListenPacket(demoEchoPort); err != nil {
		return nil, err
	}
	return &demoPeer{peer: p, services: s}, nil
}

type demoNode struct {
	process  *nodeProcess
	services *demoServices
}

// newDemoNode prepares a node that has no address anybody could call; its
// services listen on loopback and are exposed to the mesh.
func newDemoNode(ctx context.Context, gate *peer.Public, log *slog.Logger) (*demoNode, error) {
	s := &demoServices{name: demoNodeID}
	var lc net.ListenConfig
	var err error
	if s.page, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.echo, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	if s.udp, err = lc.ListenPacket(ctx, "udp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	key, err := mesh.GenerateKey()
	if err != nil {
		return nil, err
	}
	p, err := newNodeProcess(nodeOptions{
		config: node.Config{
			ID: demoNodeID, Key: key, Mode: wg.ModeNetstack,
			Expose: []node.Expose{
				{Protocol: "tcp", Port: demoHTTPPort, Target: s.page.Addr().String(), Kind: "http"},
				{Protocol: "tcp", Port: demoEchoPort, Target: s.echo.Addr().String(), Kind: "tcp-echo"},
				{Protocol: "udp", Port: demoEchoPort, Target: s.udp.LocalAddr().String(), Kind: "udp-echo"},
			},
		},
		gateway:   gate,
		iceListen: "127.0.0.1:0",
		loopback:  true,
		log:       log,
	})
	if err != nil {
		return nil, err
	}
	return &demoNode{process: p, services: s}, nil
}

// reachable waits until the gateway gets an answer from the page on node id,
// and returns the node's address.
func reachable(ctx context.Context, n *node.Node, id mesh.NodeID) (string, error) {
	client := &http.Client{Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}}
	var after uint64
	for {
		s, err := n.Wait(ctx, after)
		if err != nil {
			return "", err
		}
		after = s.Version
		o, ok := s.Nodes.Get(id)
		if !ok || len(o.Addrs()) == 0 {
			continue
		}
		address := o.Addrs()[0].String()
		for {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+hostPortURL(address, demoHTTPPort)+"/", nil)
			if err != nil {
				return "", err
			}
			answer, err := client.Do(r)
			if err == nil {
				return address, answer.Body.Close()
			}
			if ctx.Err() != nil {
				return "", err
			}
			// The first packets to a peer make the handshake and may be lost.
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return "", err
			}
		}
	}
}

func (a *app) printDemo(r ready) error {
	if a.structured() {
		return a.print(r)
	}
	fmt.Fprintf(a.stdout, "Open   %s\n\n", consoleURL(r.URL, r.Token))
	rows := [][]string{{"NODE", "SERVICE", "ADDRESS"}}
	for _, s := range r.Services {
		rows = append(rows, []string{s.Node, s.Kind, net.JoinHostPort(s.Host, fmt.Sprint(s.Port))})
	}
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "\nIn another terminal:\n  export MESHGATE_SERVER=%s MESHGATE_TOKEN=%s\n"+
		"  %[3]s status\n  %[3]s port-forward %[4]s 8000:localhost:80\n\nCtrl-C ends the demo.\n", r.URL, r.Token, os.Args[0], demoNodeID)
	return nil
}
