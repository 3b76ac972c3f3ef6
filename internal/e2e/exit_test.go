// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/internal/netlab"
)

const (
	// webPort is where a host of the Internet tells callers who they are.
	webPort = 7777
	// askWithin is how long an answer may take. Each of these is one round trip.
	askWithin = 3 * time.Second
	// blockedAfter is how long a question is asked that must get no answer.
	blockedAfter = 500 * time.Millisecond
)

// web is a host that tells callers who they are.
type web struct {
	at4, at6 string
}

// serve answers at an address of a host of the lab.
func serve(t *testing.T, side *netlab.Side, addr netip.Addr) string {
	t.Helper()
	at := netip.AddrPortFrom(addr, webPort).String()
	var l net.Listener
	if err := side.Run(func() (err error) { l, err = net.Listen("tcp", at); return err }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintln(c, from)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return at
}

// call opens a connection from a host and returns who the other end says that it is.
func call(side *netlab.Side, at string, within time.Duration) (net.Conn, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	var c net.Conn
	// One address needs no goroutines, which would be on another host.
	err := side.Run(func() (err error) { c, err = new(net.Dialer).DialContext(ctx, "tcp", at); return err })
	if err != nil {
		return nil, "", err
	}
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	var b [64]byte
	n, err := c.Read(b[:])
	if err != nil {
		return nil, "", errors.Join(err, c.Close())
	}
	return c, strings.TrimSpace(string(b[:n])), c.SetDeadline(time.Time{})
}

// seenAs is who a host is for another one; "nobody" when it does not get there.
func (n *labNode) seenAs(at string, within time.Duration) string {
	c, who, err := call(n.side, at, within)
	if err != nil {
		return "nobody"
	}
	_ = c.Close()
	return who
}

// echoed sends a line on a connection and waits for it to come back.
func echoed(c net.Conn, within time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len("hello\n")))
	return err
}

// outside is the public IPv4 address of a side behind a NAT.
func (n *labNode) outside(t *testing.T, w web) string {
	t.Helper()
	who := n.seenAs(w.at4, askWithin)
	if a, err := netip.ParseAddr(who); err != nil || a.IsPrivate() {
		t.Fatalf("%s is seen as %s", n.id, who)
	}
	return who
}

// rulesOf is what the host of a node has of policy routing.
func (n *labNode) rulesOf(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, version := range []string{"-4", "-6"} {
		out, err := n.side.Exec(t.Context(), "ip", version, "rule").CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		all.Write(out)
	}
	return all.String()
}

// A laptop and an exit behind two NATs, and a host of the Internet. Once its user
// says so, and not before, all that the laptop sends there leaves at the exit, over
// the direct path of the two. When the exit dies nothing leaves in another way,
// until the user says so.
func TestExit_OfAnotherNode(t *testing.T) {
	m := newLabMesh(t)
	server := m.lab.Server("web")
	w := web{serve(t, server, server.Addr4()), serve(t, server, server.Addr6())}
	offering := *m
	offering.joining = append(slices.Clone(m.joining), "--exit")
	exit, laptop := m.node(t, "nas", netlab.DualStack), m.node(t, "laptop", netlab.DualStack)
	offering.enter(t, exit)
	m.enter(t, laptop)
	atExit, atHome, before := exit.outside(t, w), laptop.outside(t, w), laptop.rulesOf(t)
	private := serve(t, exit.side, exit.side.Addr4())

	use := func(want int, args ...string) string {
		t.Helper()
		text, code := laptop.tell(t, append([]string{"exit"}, args...)...)
		if code != want {
			t.Errorf("meshgate exit %s: exit %d, want %d\n%s", strings.Join(args, " "), code, want, text)
		}
		return text
	}
	seen := func(what, want4, want6 string) {
		t.Helper()
		within := askWithin
		if want4 == "nobody" {
			within = blockedAfter
		}
		if got := laptop.seenAs(w.at4, within); got != want4 {
			t.Errorf("%s: the laptop is seen as %s, want %s", what, got, want4)
		}
		if got := laptop.seenAs(w.at6, within); got != want6 {
			t.Errorf("%s: over IPv6 the laptop is seen as %s, want %s", what, got, want6)
		}
	}
	exit6, home6 := exit.side.Addr6().String(), laptop.side.Addr6().String()
	awaitSaid(t, "gateway heard", exit, laptop) // `meshgate exit` waits no longer than a handshake that begins anew
	seen("before", atHome, home6)

	if text := use(0, "nas"); !strings.Contains(text, "packets to the Internet go through nas") {
		t.Error(text)
	}
	seen("with the exit", atExit, exit6)
	eventually(t, directWithin, func() (bool, string) { way := laptop.way("nas"); return way == direct, way })
	seen("over the direct path", atExit, exit6)
	if got := laptop.seenAs(private, blockedAfter); got != "nobody" {
		t.Errorf("the exit lets others into its own network, as %s", got)
	}
	if text, code := laptop.tell(t, "status"); code != 0 || !strings.Contains(text, "exit: packets to the Internet go through nas") {
		t.Errorf("status: %d\n%s", code, text)
	}
	stream, _, err := call(laptop.side, w.at4, askWithin)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()

	// The node of the laptop is killed: nothing leaves. Its next life goes on.
	laptop.kill()
	seen("killed", "nobody", "nobody")
	using := *m
	using.joining = append(slices.Clone(m.joining), "--exit-node", "nas")
	using.enter(t, laptop)
	eventually(t, patience, func() (bool, string) { who := laptop.seenAs(w.at4, blockedAfter); return who == atExit, who })
	if err := echoed(stream, patience); err != nil {
		t.Errorf("a connection through the exit did not outlive the node: %v", err)
	}

	exit.kill()
	eventually(t, patience, func() (bool, string) {
		text, code := laptop.tell(t, "status")
		return code == 0 && strings.Contains(text, "nas is out of reach") && strings.Contains(text, "are not sent"), text
	})
	seen("without the exit", "nobody", "nobody")
	if err := laptop.ping(m.gate.addr, pairWithin); err != nil {
		t.Errorf("without the exit, the mesh: %v", err)
	}
	if text := use(1, "nas", "--open"); !strings.Contains(text, "leave in the usual way") {
		t.Error(text)
	}
	seen("open", atHome, home6)
	offering.enter(t, exit)
	eventually(t, patience, func() (bool, string) { who := laptop.seenAs(w.at4, blockedAfter); return who == atExit, who })
	use(0, "--off")
	seen("off", atHome, home6)
	use(0, "nas")
	laptop.interrupt()
	seen("ended", atHome, home6)
	if after := laptop.rulesOf(t); after != before {
		t.Errorf("rules were left:\n%s\nbefore:\n%s", after, before)
	}
}

// A gateway is an exit, too: of who says so when he joins. What it serves itself is
// reached as before.
func TestExit_OfAGateway(t *testing.T) {
	m := newLabMesh(t)
	server := m.lab.Server("web")
	w := web{serve(t, server, server.Addr4()), serve(t, server, server.Addr6())}
	m.gate.interrupt()
	m.gate.process = m.gate.run(t, append(slices.Clone(m.up), "--exit")...)
	m.joining = append(m.joining, "--exit-node", "gate")
	laptop := m.join(t, netlab.DualStack)
	for at, want := range map[string]netip.Addr{w.at4: m.gate.side.Addr4(), w.at6: m.gate.side.Addr6()} {
		eventually(t, patience, func() (bool, string) {
			who := laptop.seenAs(at, blockedAfter)
			return who == want.String() || who == m.gate.side.Second(want).String(), who
		})
	}
	at := netip.AddrPortFrom(m.gate.side.Addr4(), 443).String()
	if err := laptop.side.Run(func() error {
		c, err := (&net.Dialer{Timeout: askWithin}).Dial("tcp", at)
		if err == nil {
			err = c.Close()
		}
		return err
	}); err != nil {
		t.Errorf("the gateway's API, from the host of the node: %v", err)
	}
}
