// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"

	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/turn"
	"github.com/meshgate/meshgate/turn/client"
)

// servedGateway is a gateway on loopback that serves, with further flags as pairs of
// name and value. Its TURN takes credentials of the secret "a secret for tests".
func servedGateway(t *testing.T, flags ...string) (p *gatewayProcess, dir string) {
	t.Helper()
	dir = t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("a secret for tests"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &upConfig{}
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(f)
	for name, value := range map[string]string{
		"listen": "127.0.0.1:0", "turn.listen": "127.0.0.1:0", "ice.listen": "127.0.0.1:0", "public-address": "127.0.0.1",
		"data-dir": dir, "wireguard.mode": "netstack", "wireguard.listen-port": "0", "turn.secret-file": secret, "id": "gw",
	} {
		if err := f.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < len(flags); i += 2 {
		if err := f.Set(flags[i], flags[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.load(f); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	p, err := newGatewayProcess(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- p.run(ctx, func() error { close(ready); return nil }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatalf("the gateway does not serve: %v", err)
	}
	return p, dir
}

// A gateway that sends relays on says so to who probes it.
func TestUp_IsNotReadyWhileItDrains(t *testing.T) {
	p, _ := servedGateway(t, "tls.off", "true")
	at := "http://" + p.public.Addr().String()
	for _, test := range []struct {
		change func()
		want   int
	}{
		{func() {}, http.StatusOK},
		{func() { p.turn.Drain(nil) }, http.StatusServiceUnavailable},
		{p.turn.Undrain, http.StatusOK},
	} {
		test.change()
		for path, want := range map[string]int{"/readyz": test.want, "/healthz": http.StatusOK} {
			if status, body := probe(t, at+path); status != want {
				t.Errorf("%s: %d %q, want %d", path, status, body, want)
			}
		}
	}
}

// allocate gets an allocation at p for a user of the secret.
func allocate(t *testing.T, p *gatewayProcess, user string, transport client.Transport) *client.Allocation {
	t.Helper()
	secrets, err := turn.NewSecrets([]byte("a secret for tests"), nil)
	if err != nil {
		t.Fatal(err)
	}
	uri := "turn:" + p.turn.UDPAddrs()[0].String() + "?transport=" + string(transport)
	if transport == client.TLS {
		uri = "turns:" + p.public.Addr().String() + "?transport=tcp"
	}
	c := secrets.Mint(user, time.Minute)
	a, err := client.Allocate(t.Context(), client.Config{
		Server: uri, Username: c.Username, Password: c.Password, TLS: &tls.Config{InsecureSkipVerify: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	return a
}

// command runs a command line and returns its exit code and what it wrote.
func command(t *testing.T, line ...string) (code int, out, complaint string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(t.Context(), line, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// An operator sees who is relayed, over what and how much, and ends it.
func TestTurnCommand_ListsAndCloses(t *testing.T) {
	p, dir := servedGateway(t)
	held := map[string]*client.Allocation{}
	for user, transport := range map[string]client.Transport{"alice": client.UDP, "bob": client.TCP, "carol": client.TLS} {
		held[user] = allocate(t, p, user, transport)
	}
	allocate(t, p, "bob", client.UDP)
	// Two relays of the server meet: alice sends to carol.
	if err := held["carol"].WriteTo([]byte("let me in"), held["alice"].Relayed()); err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte{1}, 1200)
	got := make(chan struct{})
	go func() {
		defer close(got)
		sizes, from := make([]int, 1), make([]netip.AddrPort, 1)
		_, _ = held["carol"].ReadBatch([][]byte{make([]byte, 2000)}, sizes, from)
	}()
	for waits := time.NewTicker(5 * time.Millisecond); ; {
		if err := held["alice"].WriteTo(payload, held["carol"].Relayed()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-got:
		case <-waits.C:
			continue
		}
		waits.Stop()
		break
	}

	code, out, complaint := command(t, "turn", "list", "--data-dir", dir)
	if code != exitOK || complaint != "" {
		t.Fatalf("%d: %s", code, complaint)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i, want := range []string{
		`^ID +USER +CLIENT +RELAYED +SINCE +ENDS IN +PERMISSIONS +CHANNELS +SENT +RECEIVED$`,
		`^gw/[0-9a-f]+ +(alice +UDP|carol +TLS) 127.0.0.1:\d+ +127.0.0.1:\d+ +\d+s ago +(10m|9m\d+s|10m0s) +1 +[01] +`,
		`^gw/[0-9a-f]+ +(alice +UDP|carol +TLS) 127.0.0.1:\d+ `,
		`^gw/[0-9a-f]+ +bob +(TCP|UDP) 127.0.0.1:\d+ .* 0 +0 +0 B +0 B$`,
		`^gw/[0-9a-f]+ +bob +(TCP|UDP) 127.0.0.1:\d+ .* 0 +0 +0 B +0 B$`,
	} {
		if i >= len(lines) || !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("line %d: want %s in\n%s", i, want, out)
		}
	}
	if !strings.Contains(out, " KiB ") {
		t.Errorf("nothing was sent:\n%s", out)
	}

	var list struct{ Items []json.RawMessage }
	code, out, _ = command(t, "turn", "list", "--user", "carol", "--output", "json", "--data-dir", dir)
	if err := json.Unmarshal([]byte(out), &list); code != exitOK || err != nil || len(list.Items) != 1 {
		t.Fatalf("%d, %v: %s", code, err, out)
	}
	carols := &meshgatev1.Allocation{}
	if err := protojson.Unmarshal(list.Items[0], carols); err != nil || carols.GetUser() != "carol" || carols.GetGatewayId() != "gw" || carols.GetTransport() != "TLS" ||
		carols.GetReceivedBytes() < 1200 || carols.GetRelayedAddresses()[0] != held["carol"].Relayed().String() {
		t.Errorf("carol's: %v, %v", carols, err)
	}

	code, out, complaint = command(t, "turn", "close", carols.GetId(), "gw/NONE", "--data-dir", dir)
	if code != exitFailed || out != carols.GetId()+": closed\n" || !strings.Contains(complaint, `no allocation "gw/NONE"; it may have ended`) {
		t.Errorf("%d: %s%s", code, out, complaint)
	}
	if code, out, complaint = command(t, "turn", "close", "--user", "bob", "--data-dir", dir); code != exitOK || out != "closed: 2 of bob\n" {
		t.Errorf("%d: %s%s", code, out, complaint)
	}
	deadline := time.Now().Add(time.Minute)
	for len(p.turn.Users()) != 1 && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if users := p.turn.Users(); len(users) != 1 || users[0] != "alice" {
		t.Errorf("%q are relayed", users)
	}
	if code, out, complaint = command(t, "turn", "close", "--user", "bob", "--data-dir", dir); code != exitFailed || !strings.Contains(complaint, `no allocation of user "bob"`) {
		t.Errorf("%d: %s%s", code, out, complaint)
	}
	if code, _, complaint = command(t, "turn", "list", "--user", "bob", "--data-dir", dir); code != exitOK || !strings.Contains(complaint, `no relays of "bob" now`) || !strings.Contains(complaint, "static:NAME") {
		t.Errorf("who has none: %d: %s", code, complaint)
	}
	// A shell offers what there is.
	if _, out, _ = command(t, "__complete", "turn", "close", "--data-dir", dir, ""); !regexp.MustCompile(`^gw/[0-9a-f]+\talice at 127\.0\.0\.1:\d+\n:4\n`).MatchString(out) {
		t.Errorf("completed with %q", out)
	}
}
