// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/datachannel"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/meshgate/meshgate/internal/v1client"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// v1Message is what v1 clients put into one message.
const v1Message = 16 << 10

// v1Target is a service as a v1 client asks for it, and how to ask.
type v1Target struct {
	Gateway, Token, Node string
	Port                 uint16
}

// dial opens a peer connection to the target over conn.
func (v v1Target) dial(ctx context.Context, conn *grpc.ClientConn) (*v1client.Client, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+v.Token)
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/v1.WebRTC/StartDataChannel")
	if err != nil {
		return nil, err
	}
	return v1client.Dial(ctx, &v1Stream{ClientStream: stream}, v1client.Config{
		Request: &v1.StartDataChannelRequest{NodeId: v.Node, Port: uint32(v.Port)},
		// What v1 clients show to TURN servers, for the API gives them nothing better.
		Username: v.Node, Password: v.Node,
	})
}

// v1Stream is a call of grpc-go as v1client wants it. grpc-go has no use for
// two senders at a time.
type v1Stream struct {
	grpc.ClientStream
	mu sync.Mutex // held while sending
}

func (s *v1Stream) Send(m *v1.StartDataChannelRequest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.SendMsg(m)
}

func (s *v1Stream) CloseSend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ClientStream.CloseSend()
}

func (s *v1Stream) Receive() (*v1.DataChannelOffer, error) {
	m := &v1.DataChannelOffer{}
	if err := s.RecvMsg(m); err != nil {
		return nil, err
	}
	return m, nil
}

// joinExposing runs a node behind gate that exposes the listeners by port.
func joinExposing(t testing.TB, gate *process, id string, services map[uint16]net.Listener) *process {
	t.Helper()
	metrics := "127.0.0.1:" + freePort(t)
	args := []string{"join", gate.ready.URL, "--token", gate.ready.Token, "--id", id, "--data-dir", t.TempDir(),
		"--wireguard.mode", "netstack", "--ice.listen", "127.0.0.1:0", "--metrics.listen", metrics, "--log.level", "warn"}
	for port, l := range services {
		args = append(args, "--expose", fmt.Sprintf("tcp:%d=%s", port, l.Addr()))
	}
	p := start(t, args...)
	p.ready.Metrics = "http://" + metrics + "/metrics"
	return p
}

// loopback listens on a port that the host chooses.
func loopback(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Existing clients open a connection and send at once; v1 nodes lose that
// first message every time.
func TestV1Client_SendsFirstFiftyOfFifty(t *testing.T) {
	gate := dev(t)
	onPhone, err := stockPeer(t, gate, "phone").Listen(7)
	if err != nil {
		t.Fatal(err)
	}
	go echo(onPhone)
	onNas := loopback(t)
	go echo(onNas)
	joinExposing(t, gate, "nas", map[uint16]net.Listener{7: onNas})
	conn, _ := grpcConn(t, gate)

	for _, node := range []string{"phone", "nas"} {
		t.Run(node, func(t *testing.T) {
			target := v1Target{Token: gate.ready.Token, Node: node, Port: 7}
			var g errgroup.Group
			g.SetLimit(4)
			for i := range 50 {
				g.Go(func() error {
					if err := target.echoTwice(conn); err != nil {
						return fmt.Errorf("attempt %d: %w", i+1, err)
					}
					return nil
				})
			}
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

// echoTwice opens a peer connection and two connections in it, one after the
// other. In each the client speaks first and compares what comes back.
func (v v1Target) echoTwice(conn *grpc.ClientConn) error {
	// A busy machine loses packets, and SCTP doubles its wait each time that it
	// loses the same one.
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	c, err := v.dial(ctx, conn)
	if err != nil {
		return err
	}
	// What blocks below ends with the peer connection.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	for range 2 {
		if err = v1Echo(c); err != nil {
			break
		}
	}
	if !stop() {
		err = errors.Join(ctx.Err(), err)
	}
	return errors.Join(err, c.Close())
}

func v1Echo(c *v1client.Client) error {
	ch, err := c.Open()
	if err != nil {
		return err
	}
	sent := make([]byte, 4*v1Message+1)
	_, _ = rand.Read(sent) // never fails
	for rest := sent; len(rest) > 0; {
		n := min(len(rest), v1Message)
		if _, err := ch.Write(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	var got []byte
	buf := make([]byte, 64<<10)
	for len(got) < len(sent) {
		n, err := ch.Read(buf)
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", len(got), err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, sent) {
		return errors.New("other bytes came back")
	}
	return ch.Close()
}

// ledger counts the connections that a service holds.
type ledger struct {
	mu          sync.Mutex // guards the fields below
	open, total int
}

func (l *ledger) add(open, total int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open += open
	l.total += total
}

func (l *ledger) counts() (open, total int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open, l.total
}

// serve hands each connection to handle and closes it afterwards.
func (l *ledger) serve(lis net.Listener, handle func(net.Conn)) {
	for {
		c, err := lis.Accept()
		if err != nil {
			return
		}
		l.add(1, 1)
		go func() {
			defer l.add(-1, 0)
			defer c.Close()
			handle(c)
		}()
	}
}

// What a connection to each of these ports does all the time.
const (
	portEcho    = 7
	portDiscard = 9
	portChargen = 19
)

// endless are services whose transfers do not end by themselves.
var endless = map[uint16]func(net.Conn){
	portEcho:    func(c net.Conn) { _, _ = io.Copy(c, c) },
	portDiscard: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
	portChargen: func(c net.Conn) {
		block := make([]byte, 64<<10)
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	},
}

// A v1 node keeps the connection of a client that vanished for ever.
func TestV1Client_VanishedLeavesNothing(t *testing.T) {
	gate := dev(t)
	phone := stockPeer(t, gate, "phone")
	var books ledger
	onNas := map[uint16]net.Listener{}
	for port, handle := range endless {
		onPhone, err := phone.Listen(port)
		if err != nil {
			t.Fatal(err)
		}
		onNas[port] = loopback(t)
		go books.serve(onPhone, handle)
		go books.serve(onNas[port], handle)
	}
	nas := joinExposing(t, gate, "nas", onNas)

	// One client of each kind that leaves properly: what is made once and kept is no leak.
	conn, _ := grpcConn(t, gate)
	nodes := []string{"phone", "nas"}
	for _, node := range nodes {
		if err := (v1Target{Token: gate.ready.Token, Node: node, Port: portEcho}).echoTwice(conn); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, patience, func() (bool, string) {
		open, _ := books.counts()
		active := sessions(gate) + sessions(nas)
		return open == 0 && active == 0, fmt.Sprintf("%d connections, %v sessions", open, active)
	})
	type held struct{ goroutines, fds int }
	count := func() map[*process]held {
		return map[*process]held{gate: {gate.goroutines(), gate.fds()}, nas: {nas.goroutines(), nas.fds()}}
	}
	before := count()

	for _, node := range nodes {
		for _, port := range []uint16{portEcho, portDiscard, portChargen} {
			vanish(t, v1Target{Gateway: strings.TrimPrefix(gate.ready.URL, "http://"), Token: gate.ready.Token, Node: node, Port: port})
		}
	}
	if _, total := books.counts(); total != 2*len(nodes)+6 {
		t.Errorf("%d connections were made, want %d", total, 2*len(nodes)+6)
	}
	began := time.Now()
	eventually(t, 2*patience, func() (bool, string) {
		open, _ := books.counts()
		after, good := count(), open == 0
		for p, b := range before {
			good = good && after[p].goroutines <= b.goroutines+5 && after[p].fds <= b.fds+2
		}
		return good, fmt.Sprintf("%d connections, gateway %v (before %v), node %v (before %v)",
			open, after[gate], before[gate], after[nas], before[nas])
	})
	t.Logf("nothing was left %s after the last client vanished", time.Since(began).Round(time.Millisecond))
}

// sessions counts the peer connections of v1 clients that the process holds.
func sessions(p *process) float64 {
	p.t.Helper()
	for line := range strings.Lines(get(p.t, p.ready.Metrics)) {
		if text, ok := strings.CutPrefix(line, `meshgate_signaling_sessions_active{kind="forward"} `); ok {
			var n float64
			if _, err := fmt.Sscan(text, &n); err != nil {
				p.t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// vanish runs a v1 client in a process of its own and kills it in the middle
// of a transfer.
func vanish(t testing.TB, target v1Target) {
	t.Helper()
	what, err := json.Marshal(target)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stderr syncBuffer
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), vanishingEnv+"="+string(what))
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // says that it was killed
	if err != nil || line != moving {
		t.Fatalf("client of port %d on %s: %q %v\n%s", target.Port, target.Node, line, err, &stderr)
	}
}

const (
	// vanishingEnv makes the test binary the client of the v1Target in it.
	vanishingEnv = "MESHGATE_E2E_VANISHING"
	// moving is what that client prints when bytes flow.
	moving = "moving\n"
	// enoughMoved is when they do.
	enoughMoved = 4 << 20
)

// vanishing transfers without end until it is killed, or has been forgotten.
func vanishing(what string) error {
	var target v1Target
	if err := json.Unmarshal([]byte(what), &target); err != nil {
		return err
	}
	conn, err := grpc.NewClient(target.Gateway, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := target.dial(ctx, conn)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	ch, err := c.Open()
	if err != nil {
		return err
	}
	var g errgroup.Group
	told := sync.OnceFunc(func() { fmt.Print(moving) })
	if target.Port != portChargen {
		g.Go(func() error { return send(ch.(*datachannel.DataChannel), target.Port == portDiscard, told) })
	}
	if target.Port != portDiscard {
		g.Go(func() error { return take(ch, told) })
	}
	return g.Wait()
}

// send writes and keeps the queue short. It tells when what was sent is
// enough, if nothing comes back that could tell better.
func send(ch *datachannel.DataChannel, tell bool, told func()) error {
	low := make(chan struct{}, 1)
	ch.SetBufferedAmountLowThreshold(256 << 10)
	ch.OnBufferedAmountLow(func() {
		select {
		case low <- struct{}{}:
		default:
		}
	})
	block := make([]byte, v1Message)
	for sent := 0; ; sent += len(block) {
		if ch.BufferedAmount() > 1<<20 {
			<-low
		}
		if _, err := ch.Write(block); err != nil {
			return err
		}
		if tell && sent > enoughMoved {
			told()
		}
	}
}

// take reads, and tells when it is enough.
func take(ch io.Reader, told func()) error {
	block := make([]byte, 64<<10)
	for got := 0; ; {
		n, err := ch.Read(block)
		if err != nil {
			return err
		}
		if got += n; got > enoughMoved {
			told()
		}
	}
}
