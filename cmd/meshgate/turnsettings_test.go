// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshgate/meshgate/turn/client"
)

// What the configuration file says of quotas and peers holds soon after it has
// changed: relays go on, a flag is stronger, and what is wrong changes nothing.
func TestConfig_IsReadAgain(t *testing.T) {
	file, secret := filepath.Join(t.TempDir(), "config.yaml"), filepath.Join(t.TempDir(), "secret")
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write := func(text string) { t.Helper(); put(file, text) }
	put(secret, "a secret of sixteen bytes")
	write("turn.allocations-per-user: 1\n")
	p := devGateway(t, "config", file, "turn.secret-file", secret, "turn.bytes-per-second", "1000000")
	var log bytes.Buffer
	p.log = slog.New(slog.NewTextHandler(&log, nil))
	credential := p.secrets.Mint("u", time.Minute)
	allocate := func() error {
		a, err := client.Allocate(t.Context(), client.Config{
			Server: "turn:" + p.turn.UDPAddrs()[0].String() + "?transport=udp", Username: credential.Username, Password: credential.Password,
		})
		if err == nil {
			t.Cleanup(func() { a.Close() })
		}
		return err
	}
	if err := allocate(); err != nil {
		t.Fatal(err)
	}
	want := func(what string, ok bool, open string, said string) {
		t.Helper()
		p.rereadConfig()
		p.rereadConfig() // and is told once
		if err := allocate(); (err == nil) != ok {
			t.Errorf("%s: another relay: %v", what, err)
		}
		if got := prefixes(p.turnOpen); got != open {
			t.Errorf("%s: open is %q, want %q", what, got, open)
		}
		if n := strings.Count(log.String(), said); said != "" && n != 1 || said == "" && log.Len() > 0 {
			t.Errorf("%s: the log says %q %d times:\n%s", what, said, n, log.String())
		}
		log.Reset()
	}
	want("unchanged", false, "", "")
	write("turn.allocations-per-user: 2\nturn.allow-peers: [192.0.2.0/24]\nturn.bytes-per-second: 7\n")
	want("more", true, "192.0.2.0/24", `flags="turn.allocations-per-user turn.allow-peers"`)
	if n := len(p.turn.Allocations()); n != 2 {
		t.Errorf("%d relays, want the first one and another", n)
	}
	for text, said := range map[string]string{
		"turn.allocations-per-user: 9\nturn.allow-peers: [127.0.0.0/8]\n": "network 127.0.0.0/8",
		"turn.allocations-per-user: -9\nturn.allow-peers: [10.0.0.0/8]\n": "--turn.allocations-per-user",
		"turn.allocations-per-user: [\n":                                  "--config",
		"turn.alow-peers: []\n":                                           "turn.alow-peers",
	} {
		write(text)
		want(text, false, "192.0.2.0/24", said)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	want("without a file", false, "192.0.2.0/24", "--config")
	write("turn:\n  allocations-per-user: 9\n  permissions: 100\n  channels-per-user: 3\n  relays: 1\n")
	want("bounds of all", false, "", `flags="turn.allocations-per-user turn.allow-peers turn.channels-per-user turn.permissions turn.relays"`)
	write("turn.allocations-per-user: 3\nlog.level: debug\n")
	want("back", true, "", "flags=log.level")
}

func prefixes(list []netip.Prefix) string {
	var text []string
	for _, p := range list {
		text = append(text, p.String())
	}
	return strings.Join(text, ",")
}
