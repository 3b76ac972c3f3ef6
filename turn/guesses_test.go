// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun"

	"github.com/meshgate/meshgate/turn/core"
)

// guess tries the credential and reports whether the server said anything to it.
func (c *rawClient) guess() (told bool) {
	c.Helper()
	m, last := c.signed(stun.MethodRefresh), stun.MustBuild(stun.TransactionID, stun.BindingRequest, longSoftware())
	c.send(m.Raw)
	c.send(last.Raw)
	for {
		switch res := c.receive(); res.TransactionID {
		case m.TransactionID:
			told = true
		case last.TransactionID:
			return told
		}
	}
}

// from is dial from an address of this host.
func from(t *testing.T, local, network, address string, cred Credential) *rawClient {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(local)}
	}
	conn, err := d.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &rawClient{TB: t, Conn: conn, cred: cred}
}

// Who tries passwords is stopped however many connections it opens, and over which
// transport; others in its network with a credential that was minted come in, and so does
// everybody elsewhere.
func TestServer_BoundsGuessesOfANetwork(t *testing.T) {
	users := &Users{}
	if _, err := users.Set([]byte("ann:correct horse battery")); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := newServer(t, func(c *Config) { c.Users, c.Logger = users, slog.New(slog.NewTextHandler(&log, nil)) })
	right, wrong := Credential{Username: "ann", Password: "correct horse battery"}, Credential{Username: "ann", Password: "wrong"}
	udp, tcp := s.UDPAddrs()[0].String(), s.TCPAddrs()[0].String()
	holder := from(t, "127.0.1.1", "tcp", tcp, right)
	holder.allocate()
	began, told, tried := time.Now(), 0, 0
	for i := range 10 { // as connections
		c := from(t, "127.0.1.2", "udp", udp, wrong)
		if i%3 > 0 {
			c = from(t, "127.0.1.3", "tcp", tcp, wrong)
		}
		c.login()
		for range 12 {
			tried++
			if c.guess() {
				told++
			}
		}
		c.Close()
	}
	if most := guessBurst + guessesPerSecond*int(time.Since(began)/time.Second+1); told < guessBurst || told > most {
		t.Errorf("%d of %d guesses were answered, want %d to %d", told, tried, guessBurst, most)
	}
	// The right one is among those that are tried no more, until a second has passed
	// without a guess.
	for name, cred := range map[string]Credential{"the right password": right, "a wrong one": wrong} {
		for {
			began := time.Now()
			for range guessBurst {
				s.guesses.Refused(netip.MustParseAddr("127.0.1.5"), true)
			}
			told := from(t, "127.0.1.4", "tcp", tcp, cred).login().guess()
			if time.Since(began) < time.Second/guessesPerSecond {
				if told {
					t.Errorf("%s was answered", name)
				}
				break
			} // else it was one's turn again: this host is slow
		}
	}
	if s.totals().core.Failed[core.FailedGuessing] == 0 {
		t.Error("none were counted")
	}
	holder.request(stun.MethodRefresh)
	from(t, "127.0.1.4", "tcp", tcp, s.secrets.Mint("u", time.Minute)).allocate()
	from(t, "127.0.2.1", "tcp", tcp, right).allocate()
	s.Close()
	if n := strings.Count(log.String(), "one credential after the other"); n < 1 || n > 1+int(time.Since(began)/time.Minute) {
		t.Errorf("the log tells %d times: %s", n, log.String())
	}
}
