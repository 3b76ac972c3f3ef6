// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshgate/meshgate/gateway"
	"github.com/meshgate/meshgate/internal/child"
	"github.com/meshgate/meshgate/node"
	nodemesh "github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/pair"
	"github.com/meshgate/meshgate/node/peer"
	"github.com/meshgate/meshgate/node/wg"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/signaling"
	"github.com/meshgate/meshgate/signaling/rtc"
)

// crowdEnv makes the test binary a crowd: the nodes that the crowdConfig in it
// asks for. It ends with the next line of its standard input.
const crowdEnv = "MESHGATE_E2E_CROWD"

// crowdConfig says who is in a crowd. The first Pairs nodes have a pair each with
// one of the Pairs nodes after them.
type crowdConfig struct {
	Name, Gateway, Pin, Token string
	Nodes, Pairs              int
	// Every is the time between two reports.
	Every time.Duration
}

// crowdReport is what a crowd says of itself, one a line.
type crowdReport struct {
	// Up are the nodes in the mesh, and Ended is true when all have left it.
	Up    int
	Ended bool
	Err   string
	// Direct, Relayed and None are the ways to gateways.
	Direct, Relayed, None int
	// Pairs are those that stand at both ends, and Lost the echoes that did not
	// come back over them.
	Pairs, Lost int
	// What the process holds: before the first node, too.
	Goroutines, FDs int
	RSS             int64
	CPU             time.Duration
}

// crowdStep is how many nodes join, and leave, at a time: a node that ends does
// not wait long for the answer to its leave.
const crowdStep = 8

// meshPort is where nodes answer each other.
const meshPort = 8443

// crowdNode is one of a crowd.
type crowdNode struct {
	*node.Node
	sessions *signaling.Service
	up       chan struct{} // closed when it answers
}

// crowd runs one, and reports on standard output.
func crowd(text string) error {
	var cfg crowdConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	c := &crowdOf{crowdConfig: cfg, out: json.NewEncoder(os.Stdout)}
	if err := c.report(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadBytes('\n')
		cancel()
	}()
	err := c.run(ctx)
	if ctx.Err() == nil && err != nil {
		c.err = err.Error()
	}
	c.ended = true
	// Goroutines of libraries end a moment after what they were for.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > 8 && time.Now().Before(end); {
		<-tick.C
	}
	return errors.Join(err, c.report())
}

// crowdOf is a running crowd.
type crowdOf struct {
	crowdConfig
	out *json.Encoder

	mu    sync.Mutex // guards the fields below
	nodes []*crowdNode
	pairs [][2]*crowdNode
	lost  int
	ended bool
	err   string
	// rss is what kept saw when it looked.
	rss    int64
	looked time.Time
}

// report prints one.
func (c *crowdOf) report() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := crowdReport{Ended: c.ended, Err: c.err, Up: len(c.nodes), Lost: c.lost}
	if c.ended {
		r.Up = 0
	}
	for _, n := range c.nodes {
		switch s := wayToGateway(n.Paths()); {
		case !s.Path.Standing:
			r.None++
		case s.Path.Direct:
			r.Direct++
		default:
			r.Relayed++
		}
	}
	for _, p := range c.pairs {
		if p[0].stands(p[1].Self()) && p[1].stands(p[0].Self()) {
			r.Pairs++
		}
	}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	r.Goroutines, r.FDs = runtime.NumGoroutine(), len(list)
	if r.RSS, err = c.kept(); err != nil {
		return err
	}
	if r.CPU, err = child.CPU(os.Getpid()); err != nil {
		return err
	}
	return c.out.Encode(r)
}

// keptEvery is the time between two collections of garbage.
const keptEvery = 20 * time.Second

// kept is the memory that the process had when it last gave back what is garbage. A quiet
// process of some hundred MiB makes as much garbage in minutes as it holds, before
// it collects any by itself: that is no growth. The caller holds mu.
func (c *crowdOf) kept() (_ int64, err error) {
	if now := time.Now(); now.Sub(c.looked) >= keptEvery || c.ended {
		debug.FreeOSMemory()
		c.looked = now
		c.rss, _, err = child.RSS(os.Getpid())
	}
	return c.rss, err
}

// wayToGateway is the best one.
func wayToGateway(all []pair.Status) (best pair.Status) {
	for _, s := range all {
		if s.Gateway && (!best.Path.Standing || s.Path.Direct) {
			best = s
		}
	}
	return best
}

// awaitWay waits for a way to a gateway: a machine that is busy with other things,
// too, has to get to the end of what it has begun before more nodes come.
func (n *crowdNode) awaitWay(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !wayToGateway(n.Paths()).Path.Standing {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *crowdNode) stands(with nodemesh.NodeID) bool {
	for _, s := range n.Paths() {
		if s.Node == with {
			return s.Stands && s.Path.Standing
		}
	}
	return false
}

// run has everybody join, and talk, until ctx ends.
func (c *crowdOf) run(ctx context.Context) error {
	var opts peer.TLSOptions
	pin, err := hex.DecodeString(strings.TrimPrefix(c.Pin, "sha256:"))
	if err != nil || copy(opts.Pin[:], pin) != len(opts.Pin) {
		return fmt.Errorf("pin %q: %w", c.Pin, err)
	}
	// One client for all: nodes of one address are one network to the gateway.
	gate, err := peer.NewPublic(c.Gateway, c.Token, opts)
	if err != nil {
		return err
	}
	defer gate.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.talk(ctx) })
	left := make(chan struct{}) // closed when all have
	g.Go(func() error {
		tick := time.NewTicker(c.Every)
		defer tick.Stop()
		for {
			select {
			case <-left:
				return nil
			case <-tick.C:
				if err := c.report(); err != nil {
					return err
				}
			}
		}
	})
	var ends []func() // each ends a node and waits until it has left
	joining := make(chan struct{}, crowdStep)
	for i := range c.Nodes {
		select {
		case joining <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		n, err := newCrowdNode(nodemesh.NodeID(fmt.Sprintf("%s-%d", c.Name, i)), gate, opts.Config())
		if err != nil {
			g.Go(func() error { return err })
			break
		}
		on, end := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		ends = append(ends, func() { end(); <-ended })
		g.Go(func() error { defer close(ended); return n.run(on) })
		g.Go(func() error {
			defer func() { <-joining }()
			select {
			case <-n.up:
				c.mu.Lock()
				c.nodes = append(c.nodes, n)
				c.mu.Unlock()
				n.awaitWay(ctx)
			case <-ctx.Done():
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(left)
		<-ctx.Done()
		var leaving errgroup.Group
		leaving.SetLimit(crowdStep)
		for _, end := range ends {
			leaving.Go(func() error { end(); return nil })
		}
		return leaving.Wait()
	})
	return g.Wait()
}

// talk has the pairs talk once all are there.
func (c *crowdOf) talk(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c.mu.Lock()
		all := c.nodes
		c.mu.Unlock()
		if len(all) < c.Nodes {
			continue
		}
		var g errgroup.Group
		for i := range c.Pairs {
			g.Go(func() error { return c.talkTo(ctx, all[i], all[c.Pairs+i]) })
		}
		return g.Wait()
	}
}

// talkTo has one node say something to another each second, until ctx ends.
func (c *crowdOf) talkTo(ctx context.Context, from, to *crowdNode) error {
	c.mu.Lock()
	c.pairs = append(c.pairs, [2]*crowdNode{from, to})
	c.mu.Unlock()
	addr := to.Snapshot().Node(to.Self()).IPv4.Addr()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	conn, err := from.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, portEcho).String())
	for err != nil { // its gateway may not be reached yet
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		conn, err = from.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, portEcho).String())
	}
	defer conn.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := conn.SetDeadline(time.Now().Add(5 * time.Second))
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err != nil && ctx.Err() == nil {
			c.mu.Lock()
			c.lost++
			c.mu.Unlock()
		}
	}
}

// ignoreEnd returns err unless ctx has ended.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// newCrowdNode makes a node as the command join does, but for its size.
func newCrowdNode(id nodemesh.NodeID, gate *peer.Public, believe *tls.Config) (*crowdNode, error) {
	key, err := nodemesh.GenerateKey()
	if err != nil {
		return nil, err
	}
	n := &crowdNode{up: make(chan struct{})}
	n.Node, err = node.New(node.Config{
		ID: id, Key: key, Mode: wg.ModeNetstack, Lean: true,
		Features: []nodemesh.Feature{{Kind: v1.Feature_NODES, Port: meshPort}},
		Follow: &node.Follow{
			Public:    gate.Member(),
			Mesh:      func(at netip.AddrPort) node.Gateway { return n.Peers().Member(at) },
			MeshPairs: func(at netip.AddrPort) node.PairGateway { return n.Peers().Pairs(at) },
			Paths:     true,
			RelayTLS:  func(string) *tls.Config { return believe },
			Name:      gate.URL(),
			Refused:   peer.Refused,
			Removed:   peer.Removed,
		},
	})
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenUDP("udp", nil)
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	sessions := gateway.Sessions{SessionNode: n.Node}
	n.sessions, err = signaling.New(signaling.Config{
		Self: id, RTC: rtc.Config{UDP: udp}, Authorizer: sessions, Dialer: sessions, Peers: sessions.Others(),
		WireGuard: sessions.Device(), Paths: crowdPaths{n.Node},
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// crowdPaths answers other nodes that look for a path.
type crowdPaths struct{ *node.Node }

// ServePaths implements signaling.PathSignals.
func (n crowdPaths) ServePaths(ctx context.Context, from nodemesh.NodeID, channel signaling.PathStream) error {
	return n.AnswerPath(ctx, from, channel)
}

// run keeps the node in the mesh until ctx ends, and then takes it out.
func (n *crowdNode) run(ctx context.Context) error {
	// The node ends last: what else ends uses the mesh.
	nodeCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- n.Run(nodeCtx) }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
		ended <- nil
		err = fmt.Errorf("node %s ended: %w", n.Self(), err)
	case <-n.Ready():
		err = n.serve(ctx)
	}
	err = errors.Join(err, n.sessions.Close())
	stop()
	return errors.Join(err, <-ended, n.Close())
}

// serve answers calls and echoes of the mesh.
func (n *crowdNode) serve(ctx context.Context) error {
	addr := n.Snapshot().Node(n.Self()).IPv4.Addr()
	calls, err := n.Listen(ctx, "tcp", netip.AddrPortFrom(addr, meshPort).String())
	if err != nil {
		return err
	}
	echoes, err := n.Listen(ctx, "tcp", netip.AddrPortFrom(addr, portEcho).String())
	if err != nil {
		return errors.Join(err, calls.Close())
	}
	defer echoes.Close()
	go echo(echoes)
	g, err := gateway.New(gateway.Config{Node: n.Node, Signaling: n.sessions, Mesh: []net.Listener{calls}})
	if err != nil {
		return errors.Join(err, calls.Close())
	}
	close(n.up)
	return ignoreEnd(ctx, g.Run(ctx))
}
