// SPDX-License-Identifier: Apache-2.0

//go:build linux

package turn

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn/xdp"
)

// Addresses inside the namespaces: public unicast ones, since the policy denies
// the blocks that are usually set aside for tests.
const (
	serverHost = "11.0.0.1"
	clientHost = "11.0.0.2" // the peer is there too
	serverIPv6 = "2a00:11::1"
	clientIPv6 = "2a00:11::2"
	gatewayTCP = "8443" // stands for another service of the gateway
	tlsPort    = "5349"
)

// helperEnv makes this test binary a TURN server; see TestMain.
const helperEnv = "MESHGATE_TURN_TEST_SERVER"

// kernelEnv is the XDP mode of that server.
const kernelEnv = "MESHGATE_TURN_TEST_XDP"

// runHelper serves on serverHost until standard input ends, and then says how many
// packets the kernel has relayed.
func runHelper() int {
	host, ipv6 := netip.MustParseAddr(serverHost), netip.MustParseAddr(serverIPv6)
	at := []netip.AddrPort{netip.AddrPortFrom(netip.IPv6Unspecified(), 3478)}
	secrets, err := NewSecrets(testSecret, nil)
	var l net.Listener
	if err == nil {
		l, err = listenTLS("[::]:" + tlsPort)
	}
	if err == nil {
		var s *Server
		if s, err = New(Config{
			UDP: at, TCP: at, SecureListeners: []net.Listener{l}, TCPRelays: true, Relay: Relay{Public: host, Bind: host, Public6: ipv6, Bind6: ipv6},
			Secrets: secrets, AllowNetworks: everywhere(), Limits: Limits{AnswersPerSecond: 1000, RelaysPerUser: 1000},
			XDP: xdp.Mode(os.Getenv(kernelEnv)),
		}); err == nil {
			fmt.Println("ready")
			io.Copy(io.Discard, os.Stdin)
			fmt.Println(s.kernel.Stats().Packets[xdp.Sent])
			err = s.Close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func listenTLS(at string) (net.Listener, error) {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return nil, err
	}
	cert, err := makeCertificate()
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}), nil
}

// lab is two namespaces, one for the server and one for client and peer,
// with a cable between them.
type lab struct{ server, client string }

func newLab(t *testing.T) lab {
	t.Helper()
	n := lab{server: fmt.Sprintf("turn-s-%d", os.Getpid()), client: fmt.Sprintf("turn-c-%d", os.Getpid())}
	for _, ns := range []string{n.server, n.client} {
		_ = exec.Command("ip", "netns", "del", ns).Run() // a killed run may have left its own, under a number that comes again
		ip(t, "netns", "add", ns)
		t.Cleanup(func() { ip(t, "netns", "del", ns) })
		ip(t, "-n", ns, "link", "set", "lo", "up")
	}
	ip(t, "link", "add", "cable", "netns", n.server, "type", "veth", "peer", "name", "cable", "netns", n.client)
	for ns, host := range map[string]string{n.server: serverHost, n.client: clientHost} {
		ip(t, "-n", ns, "addr", "add", host+"/24", "dev", "cable")
		ip(t, "-n", ns, "addr", "add", map[string]string{serverHost: serverIPv6, clientHost: clientIPv6}[host]+"/64", "dev", "cable", "nodad")
		ip(t, "-n", ns, "link", "set", "cable", "up")
	}
	return n
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// start runs a command in a namespace until the test ends, and waits for a line
// of its output that has ready in it.
func start(t *testing.T, ns, ready string, env []string, args ...string) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
		output.Close()
	})
	seen := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(output)
		for lines.Scan() {
			if strings.Contains(lines.Text(), ready) {
				select {
				case seen <- true:
				default: // said before
				}
			}
		}
		close(seen)
	}()
	select {
	case ok := <-seen:
		if !ok {
			t.Fatalf("%v ended before it was ready", args)
		}
	case <-time.After(patience):
		t.Fatalf("%v is not ready", args)
	}
}

// uclient runs coturn's client, the last argument being the server, and returns what it says. The reasons for which
// it tries again are none of the server's: it draws channel numbers that RFC 8656
// has reserved since (0x5000 to 0x7FFF), three times out of four, and the same one
// for as long as its clock says the same second.
func (n lab) uclient(ctx context.Context, args ...string) string {
	args = append([]string{
		"netns", "exec", n.client, "stdbuf", "-oL", "turnutils_uclient", "-c", "-v", "-n", "5", "-z", "10", "-l", "300",
	}, args...)
	ctx, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
		if ctx.Err() != nil || !strings.Contains(string(out), "channel bind: error 400") {
			return fmt.Sprintf("%s\nend: %v", out, err)
		}
	}
}

// What coturn's client says at the end, of one that sends to a peer and of two that
// send to each other, and of both when nothing was lost.
const (
	saysRelayed      = "tot_send_msgs=5, tot_recv_msgs=5"
	saysRelayedTwice = "tot_send_msgs=10, tot_recv_msgs=10"
	saysLossless     = "Total lost packets 0 (0.000000%), total send dropped 0 (0.000000%)"
)

// clientsAtOnce is how many of coturn's clients run at the same time: they wait more
// than they work.
const clientsAtOnce = 12

// everyWay are the ways on which coturn's client relays, with its arguments, the server
// last if it is at its IPv6 address: over each transport, to a peer and between two
// relays of its own, of both families, with DONT-FRAGMENT and without.
func everyWay() map[string][]string {
	all := map[string][]string{}
	for transport, flags := range map[string][]string{
		"udp": {"-s"}, "tcp": {"-s", "-t"},
		// In a record it takes notice of the first message alone, so that these have to be apart.
		"tls": {"-s", "-t", "-S", "-p", tlsPort, "-z", "500"},
	} {
		for way, peer := range map[string][]string{
			"to a peer": {"-e", clientHost}, "to a peer, dont-fragment": {"-g", "-e", clientHost},
			"between two relays": {"-y"}, "between two relays, dont-fragment": {"-g", "-y"},
			"to a peer of IPv6": {"-e", clientIPv6, "-x"}, "between two relays of IPv6": {"-y", "-x"},
			"by IPv6 to a peer": {"-e", clientHost, serverIPv6}, "by IPv6 to one of IPv6, dont-fragment": {"-g", "-e", clientIPv6, "-x", serverIPv6},
		} {
			all[transport+" "+way] = slices.Concat(flags, peer)
		}
	}
	return all
}

func newCoturnLab(t *testing.T) lab {
	t.Helper()
	n := newLab(t)
	start(t, n.server, "ready", []string{helperEnv + "=1"}, os.Args[0])
	start(t, n.client, "", nil, "stdbuf", "-oL", "turnutils_peer", "-L", clientHost, "-L", clientIPv6, "-p", "3480", "-v")
	return n
}

func TestCoturn(t *testing.T) {
	n := newCoturnLab(t)
	secrets, err := NewSecrets(testSecret, nil)
	if err != nil {
		t.Fatal(err)
	}
	login := func(user string, ttl time.Duration) []string {
		c := secrets.Mint(user, ttl)
		return []string{"-u", c.Username, "-w", c.Password}
	}
	wrong := append(login("wrong", time.Hour)[:3], "wrong")
	restAPI := []string{"-u", "rest", "-W", string(testSecret)} // coturn's client makes the credential
	const denied = "error 403"
	type client struct {
		name  string
		login []string
		args  []string
		want  string
	}
	tests := []client{
		{"udp channel", login("a", time.Hour), []string{"-e", clientHost}, saysRelayed},
		{"tcp channel", login("c", time.Hour), []string{"-e", clientHost, "-t"}, saysRelayed},
		{"tls channel", login("v", time.Hour), []string{"-e", clientHost, "-t", "-S", "-p", tlsPort, "-z", "500"}, saysRelayed},
		{"udp channel of IPv6", login("r", time.Hour), []string{"-e", clientIPv6, "-x"}, saysRelayed},
		{"two relays by channels", login("y", time.Hour), []string{"-y"}, saysRelayedTwice},
		{"dont-fragment by channel", login("w", time.Hour), []string{"-e", clientHost, "-g"}, saysRelayed},
		{"credential by the rest convention", restAPI, []string{"-e", clientHost, "-s"}, saysRelayed},
		{"large packets", login("e", time.Hour), []string{"-e", clientHost, "-s", "-l", "1400"}, saysRelayed},

		{"expired", login("g", -time.Minute), []string{"-e", clientHost}, "Cannot complete Allocation"},
		// It tries until its connection is ended, as that of who guesses.
		{"expired over tcp", login("h", -time.Minute), []string{"-e", clientHost, "-t"}, "end: exit status 255"},
		{"wrong password", wrong, []string{"-e", clientHost}, "Cannot complete Allocation"},
		{"wrong secret", []string{"-u", "x", "-W", "another secret altogether"}, []string{"-e", clientHost}, "Cannot complete Allocation"},
		{"loopback", login("i", time.Hour), []string{"-e", "127.0.0.1"}, denied},
		{"loopback by send", login("j", time.Hour), []string{"-e", "127.0.0.1", "-s"}, denied},
		{"loopback over tcp", login("k", time.Hour), []string{"-e", "127.0.0.1", "-t"}, denied},
		{"metadata", login("l", time.Hour), []string{"-e", "169.254.169.254"}, denied},
		{"private", login("m", time.Hour), []string{"-e", "10.0.0.1"}, denied},
		{"mapped loopback", login("n", time.Hour), []string{"-e", "::ffff:127.0.0.1"}, denied}, // it asks for a relay of that family
		{"loopback of IPv6", login("q", time.Hour), []string{"-e", "::1"}, denied},
		{"another port of the gateway", login("o", time.Hour), []string{"-e", serverHost, "-r", gatewayTCP}, denied},
		{"the turn port itself", login("p", time.Hour), []string{"-e", serverHost, "-r", "3478"}, denied},
	}
	for name, args := range everyWay() {
		tc := client{name, login("each", time.Hour), args, saysRelayed}
		if slices.Contains(args, "-y") {
			tc.want = saysRelayedTwice
		}
		tests = append(tests, tc)
	}
	places := make(chan struct{}, clientsAtOnce)
	var clients sync.WaitGroup
	t.Cleanup(clients.Wait) // the test's context has ended then
	said := make([]chan string, len(tests))
	for i, tc := range tests {
		args := append(tc.login, tc.args...)
		if args[len(args)-1] != serverIPv6 {
			args = append(args, serverHost)
		}
		said[i] = make(chan string, 1)
		clients.Go(func() {
			places <- struct{}{}
			said[i] <- n.uclient(t.Context(), args...)
			<-places
		})
	}
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			out := <-said[i]
			if !strings.Contains(out, tc.want) {
				t.Errorf("no %q in what the client says:\n%s", tc.want, out)
			}
			if (tc.want == saysRelayed || tc.want == saysRelayedTwice) && !strings.Contains(out, saysLossless) {
				t.Errorf("no %q in what the client says:\n%s", saysLossless, out)
			}
		})
	}
}
