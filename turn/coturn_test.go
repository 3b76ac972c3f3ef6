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
	"strings"
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
		l, err = listenTLS(netip.AddrPortFrom(host, 5349))
	}
	if err == nil {
		var s *Server
		if s, err = New(Config{
			UDP: at, TCP: at, SecureListeners: []net.Listener{l}, TCPRelays: true, Relay: Relay{Public: host, Bind: host, Public6: ipv6, Bind6: ipv6},
			Secrets: secrets, AllowNetworks: everywhere(), Limits: Limits{AnswersPerSecond: 1000, AllocationsPerUser: 1000},
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

func listenTLS(at netip.AddrPort) (net.Listener, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
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
func (n lab) uclient(t *testing.T, args ...string) string {
	t.Helper()
	args = append([]string{
		"netns", "exec", n.client, "stdbuf", "-oL", "turnutils_uclient", "-c", "-v", "-n", "5", "-z", "10", "-l", "300",
	}, args...)
	for began := time.Now(); time.Since(began) < 3*patience; {
		ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
		out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
		cancel()
		if !strings.Contains(string(out), "channel bind: error 400") {
			return fmt.Sprintf("%s\nend: %v", out, err)
		}
	}
	t.Fatal("coturn's client never drew a good channel number")
	return ""
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
	const relayed, relayedTwice, denied = "tot_send_msgs=5, tot_recv_msgs=5", "tot_send_msgs=10, tot_recv_msgs=10", "error 403"
	tests := []struct {
		name  string
		login []string
		args  []string
		want  string
	}{
		{"udp channel", login("a", time.Hour), []string{"-e", clientHost}, relayed},
		{"udp send", login("b", time.Hour), []string{"-e", clientHost, "-s"}, relayed},
		{"tcp channel", login("c", time.Hour), []string{"-e", clientHost, "-t"}, relayed},
		{"tcp send", login("d", time.Hour), []string{"-e", clientHost, "-t", "-s"}, relayed},
		{"credential by the rest convention", restAPI, []string{"-e", clientHost, "-s"}, relayed},
		{"large packets", login("e", time.Hour), []string{"-e", clientHost, "-s", "-l", "1400"}, relayed},
		{"two relays of one client", login("f", time.Hour), []string{"-y", "-s"}, relayedTwice},

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
		{"udp channel of IPv6", login("r", time.Hour), []string{"-e", clientIPv6, "-x"}, relayed},
		{"tcp send of IPv6", login("s", time.Hour), []string{"-e", clientIPv6, "-x", "-t", "-s"}, relayed},
		{"IPv6 to the server, IPv4 to the peer", login("t", time.Hour), []string{"-e", clientHost, serverIPv6}, relayed},
		{"IPv6 all the way", login("u", time.Hour), []string{"-e", clientIPv6, "-x", serverIPv6}, relayed},
		{"tls channel", login("v", time.Hour), []string{"-e", clientHost, "-t", "-S", "-p", "5349"}, relayed},
		{"dont-fragment", login("w", time.Hour), []string{"-e", clientHost, "-g"}, relayed},
		{"dont-fragment by send", login("x", time.Hour), []string{"-e", clientHost, "-g", "-s"}, relayed},
		{"two relays by channels", login("y", time.Hour), []string{"-y", "-c"}, relayedTwice},
		{"another port of the gateway", login("o", time.Hour), []string{"-e", serverHost, "-r", gatewayTCP}, denied},
		{"the turn port itself", login("p", time.Hour), []string{"-e", serverHost, "-r", "3478"}, denied},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			args := append(tc.login, tc.args...)
			if args[len(args)-1] != serverIPv6 {
				args = append(args, serverHost)
			}
			if out := n.uclient(t, args...); !strings.Contains(out, tc.want) {
				t.Errorf("no %q in what the client says:\n%s", tc.want, out)
			}
		})
	}
}
