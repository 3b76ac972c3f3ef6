// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshgate/meshgate/node/peer"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling/client"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// maxForwarded bounds the local connections that are carried at a time; it is
// below the 256 channels that a peer connection may hold.
const maxForwarded = 200

// forwardSpec is LPORT:HOST:RPORT.
type forwardSpec struct {
	listen string // "address:port" on this machine
	target string // "host:port" as the node sees it
}

// parseForward reads [ADDRESS:]LPORT:HOST:RPORT and LPORT:RPORT. An IPv6 HOST
// stands in brackets.
func parseForward(text, address string) (forwardSpec, error) {
	bad := usagef("%q: want LPORT:HOST:RPORT, as in 8000:localhost:80", text)
	local, rest, ok := strings.Cut(text, ":")
	if !ok {
		return forwardSpec{}, bad
	}
	if !strings.Contains(rest, ":") {
		rest = "localhost:" + rest
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil || host == "" {
		return forwardSpec{}, bad
	}
	if n, err := strconv.ParseUint(local, 10, 16); err != nil || strconv.FormatUint(n, 10) != local {
		return forwardSpec{}, bad
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return forwardSpec{}, bad
	}
	return forwardSpec{listen: net.JoinHostPort(address, local), target: net.JoinHostPort(host, port)}, nil
}

func (a *app) portForwardCommand() *cobra.Command {
	var to access
	var address string
	cmd := &cobra.Command{
		Use:   "port-forward NODE LPORT:HOST:RPORT",
		Short: "a TCP port of this machine leads to HOST:RPORT on NODE",
		Long: "port-forward listens on LPORT of this machine (0 picks one) and carries each\n" +
			"connection through a data channel to NODE and on to HOST:RPORT as NODE sees it.\n" +
			"HOST is localhost for what NODE exposes, or an address in a network behind NODE.\n" +
			"To reach another node of the mesh, name that one as NODE; only on a gateway may\n" +
			"HOST be the id or the mesh address of another node, too.",
		Args: args(cobra.ExactArgs(2), "NODE LPORT:HOST:RPORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := parseForward(args[1], address)
			if err != nil {
				return err
			}
			gate, err := to.dial(cmd.Context(), cmd.Flags())
			if err != nil {
				return err
			}
			defer gate.Close()
			f := &forwarder{app: a, gate: gate, node: args[0], target: spec.target, url: to.URL}
			return f.run(cmd.Context(), spec.listen)
		},
	}
	to.registerServer(cmd.Flags())
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address of this machine to listen on")
	return cmd
}

// forwarder carries local connections through one peer connection, which it
// makes anew when it was lost.
type forwarder struct {
	app    *app
	gate   *peer.Public
	url    string
	node   string
	target string

	// renew is set when the node wants new connections on a new peer connection.
	renew atomic.Bool

	mu   sync.Mutex // guards the fields below; held while dialling, so that one dials for all
	conn *client.Conn
	old  []*client.Conn // renewed ones, which end by themselves when they are idle
}

// run serves until ctx ends. The first peer connection is made before anything
// is promised, so that a wrong node or a missing permission shows at once.
func (f *forwarder) run(ctx context.Context, listen string) error {
	if _, err := f.session(ctx); err != nil {
		return err
	}
	defer f.end()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", listen, err)
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	if err := f.announce(l.Addr()); err != nil {
		return err
	}
	var wait sync.WaitGroup
	defer wait.Wait()
	free := make(chan struct{}, maxForwarded)
	for {
		c, err := l.Accept()
		if err != nil {
			return endOf(ctx, err)
		}
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), c.Close())
		}
		wait.Go(func() {
			defer func() { <-free }()
			f.carry(ctx, c)
		})
	}
}

func (f *forwarder) announce(at net.Addr) error {
	if f.app.structured() {
		return f.app.print(ready{Event: "ready", URL: "http://" + at.String()})
	}
	_, err := fmt.Fprintf(f.app.stdout, "%s leads to %s on %s\n", at, f.target, f.node)
	return err
}

// carry joins one local connection with its destination.
func (f *forwarder) carry(ctx context.Context, local net.Conn) {
	defer func() { _ = local.Close() }()
	remote, err := f.dial(ctx)
	if err != nil {
		fmt.Fprintf(f.app.stderr, "meshgate: %s on %s: %s\n", f.target, f.node, explain(err))
		return
	}
	defer func() { _ = remote.Close() }()
	defer context.AfterFunc(ctx, func() { _, _ = local.Close(), remote.Close() })()
	var wait sync.WaitGroup
	wait.Go(func() { copyHalf(remote, local) })
	copyHalf(local, remote)
	wait.Wait()
}

// copyHalf copies one direction and hands its end on. After an error the other
// direction is of no use either.
func copyHalf(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		err = half.CloseWrite()
	}
	if err != nil {
		_, _ = dst.Close(), src.Close()
	}
}

// dial opens a connection, on a new peer connection if the present one is lost.
func (f *forwarder) dial(ctx context.Context) (net.Conn, error) {
	s, err := f.session(ctx)
	if err != nil {
		return nil, err
	}
	return s.DialContext(ctx, "tcp", f.target)
}

// dialTimeout bounds the making of a peer connection.
const dialTimeout = 30 * time.Second

// session is the peer connection, made if there is none.
func (f *forwarder) session(ctx context.Context) (*client.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil && f.renew.CompareAndSwap(true, false) {
		f.old, f.conn = append(f.old, f.conn), nil
	}
	if f.conn != nil {
		select {
		case <-f.conn.Done():
			_ = f.conn.Close() // it is lost already
			f.conn = nil
		default:
			return f.conn, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	call := peer.NewStream[v1.DataChannelOffer, v1.StartDataChannelRequest](f.gate.WebRTC().StartDataChannel(ctx))
	c, err := client.Dial(ctx, call, client.Options{
		Node:    f.node,
		RTC:     rtc.Config{Loopback: peer.IsLoopback(f.gate.Host())},
		OnRenew: func() { f.renew.Store(true) },
	})
	if err != nil {
		return nil, fmt.Errorf("reach node %s: %w", f.node, err)
	}
	f.conn = c
	return c, nil
}

func (f *forwarder) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		f.old = append(f.old, f.conn)
	}
	var closing sync.WaitGroup
	for _, c := range f.old {
		closing.Go(func() { _ = c.Close() }) // the process ends, and gives its relays back
	}
	closing.Wait()
}
