// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/meshgate/meshgate/node/mesh"
)

// loadedUp is a gateway's configuration by these flags.
func loadedUp(t *testing.T, args ...string) *upConfig {
	t.Helper()
	c := &upConfig{}
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(f)
	if err := f.Parse(append([]string{"--public-address=127.0.0.1", "--id=gw", "--data-dir="}, args...)); err != nil {
		t.Fatal(err)
	}
	if err := c.load(f); err != nil {
		t.Fatal(err)
	}
	return c
}

// A setting that can never work is told before the data directory is made, and so
// before it is bound to an id.
func TestUp_ChecksSettingsBeforeItWritesAnything(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	for name, tt := range map[string]struct {
		flags []string
		text  string
	}{
		"static outside":      {[]string{"--mesh.ipv4-network=172.16.0.0/29", "--mesh.static-ipv4=fixed=172.16.0.99"}, "--mesh.static-ipv4 fixed=172.16.0.99"},
		"static broadcast":    {[]string{"--mesh.ipv4-network=172.16.0.0/29", "--mesh.static-ipv4=fixed=172.16.0.7"}, "--mesh.ipv4-network 172.16.0.0/29"},
		"static network":      {[]string{"--mesh.static-ipv4=fixed=172.16.0.0"}, "--mesh.static-ipv4 fixed=172.16.0.0"},
		"one static for two":  {[]string{"--mesh.static-ipv4=a=172.16.0.9,b=172.16.0.9"}, "--mesh.static-ipv4"},
		"port of TURN":        {[]string{"--turn.listen=:347800"}, "--turn.listen"},
		"no port of TURN":     {[]string{"--turn.listen=127.0.0.1"}, "--turn.listen"},
		"port of the API":     {[]string{"--listen=:http-or-so"}, "--listen"},
		"port of metrics":     {[]string{"--metrics.listen=9090"}, "--metrics.listen"},
		"port of ICE":         {[]string{"--ice.listen=:-1"}, "--ice.listen"},
		"ports of relays":     {[]string{"--turn.relay-ports=9-3"}, "--turn.relay-ports"},
		"peers of relays":     {[]string{"--turn.allow-peers=10.0.0.1/8"}, "--turn.allow-peers"},
		"proxies of TURN":     {[]string{"--turn.trusted-proxies=x"}, "--turn.trusted-proxies"},
		"XDP":                 {[]string{"--turn.xdp=maybe"}, "--turn.xdp"},
		"secret that is away": {[]string{"--turn.secret-file=" + absent}, "--turn.secret-file"},
		"users that are away": {[]string{"--turn.users-file=" + absent}, "--turn.users-file"},
		"passwords":           {[]string{"--auth.htpasswd-file=" + absent}, "--auth.htpasswd-file"},
		"certificate":         {[]string{"--tls.off=false", "--tls.cert-file=" + absent, "--tls.key-file=" + absent}, "--tls.cert-file"},
		"origin":              {[]string{"--cors.origins=*"}, "--cors.origins"},
		"id":                  {[]string{"--id=a/b"}, "--id"},
		"service":             {[]string{"--expose=tcp:0=x"}, "expose"},
		"services":            {[]string{"--expose=tcp:80=127.0.0.1:1", "--expose=tcp:80=127.0.0.1:2"}, "twice"},
		"own port":            {[]string{"--expose=tcp:8443=127.0.0.1:1"}, "expose another"},
		"route":               {[]string{"--routes=10.0.0.1/8"}, "--routes"},
		"MTU":                 {[]string{"--wireguard.mtu=100"}, "mtu"},
		"exit":                {[]string{"--exit"}, "TUN"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel() // of a gateway that runs
			dir := filepath.Join(t.TempDir(), "data")
			args := []string{
				"up", "--public-address=127.0.0.1", "--public-address-ipv6=", "--id=gw", "--data-dir=" + dir, "--tls.off", "--listen=127.0.0.1:0",
				"--metrics.listen=", "--ice.listen=127.0.0.1:0", "--turn.listen=127.0.0.1:0", "--wireguard.mode=netstack", "--wireguard.listen-port=0",
			}
			var stdout, stderr bytes.Buffer
			if code := run(ctx, append(args, tt.flags...), &stdout, &stderr); code == exitOK || !strings.Contains(stderr.String(), tt.text) {
				t.Errorf("exit code %d, want %q, got: %s%s", code, tt.text, &stdout, &stderr)
			}
			if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the data directory was made: %v", err)
			}
		})
	}
}

// A mesh that is there may have another network than the flag says, which counts only
// when it is made: its gateway goes on, and says who cannot join.
func TestUp_StaticAddressesInAMeshThatIsThere(t *testing.T) {
	dir := t.TempDir()
	flags := []string{"--data-dir=" + dir, "--mesh.static-ipv4=in=10.1.0.5,out=172.16.0.5,far=192.0.2.1"}
	if _, err := loadedUp(t, flags...).parse(); err == nil {
		t.Fatal("a new mesh")
	}
	if _, err := loadedUp(t, append(flags, "--cluster.join=https://gw1:8443")...).parse(); err != nil {
		t.Errorf("the mesh of others: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, meshFile), []byte("fd00::/48\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	parsed, err := loadedUp(t, flags...).parse()
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	parsed.tellOutside(netip.MustParsePrefix("10.1.0.0/16"), slog.New(slog.NewTextHandler(&log, nil)))
	if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "node=out") || !strings.Contains(text, "node=far") {
		t.Errorf("told:\n%s", text)
	}
	if len(parsed.static) != 3 {
		t.Errorf("left: %v", parsed.static)
	}
}

func TestOpenState_SaysWhatToDoAboutAnotherNodes(t *testing.T) {
	c := loadedUp(t, "--data-dir="+t.TempDir())
	open := func(id mesh.NodeID) error {
		p := &gatewayProcess{cfg: c, log: slog.New(slog.DiscardHandler), registry: newRegistry()}
		err := p.openState(id)
		if err == nil {
			err = p.store.Close()
		}
		return err
	}
	if err := open("gw1"); err != nil {
		t.Fatal(err)
	}
	err := open("gw7")
	if err == nil {
		t.Fatal("opened")
	}
	for _, want := range []string{`"gw1"`, "--id", "--data-dir", c.dataDir} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
}
