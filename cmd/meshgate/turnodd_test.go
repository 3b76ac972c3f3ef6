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

	"github.com/spf13/pflag"
)

// What can be and is hardly meant is in the log, and what is usual is not.
func TestTURN_WarnsOfWhatIsHardlyMeant(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	public, loopback := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		name      string
		mode      os.FileMode
		at        string
		address   netip.Addr
		low, high uint16
		want      []string // of each line
	}{
		{"as it is without a word", 0o640, "[::]:3478", public, 49152, 65535, nil},
		{"for developers", 0o600, "127.0.0.1:3478", loopback, 49152, 65535, nil},
		{"beside the ports", 0o600, "[::]:3478", public, 3480, 51819, nil},
		{"a file for all", 0o644, "[::]:3478", public, 49152, 65535, []string{"flag=--turn.users-file"}},
		{"within the ports", 0o600, "[::]:3478", public, 3478, 3479, []string{"flag=--turn.listen", "flag=--ice.listen"}},
		{"at loopback", 0o600, "127.0.0.1:3478", public, 49152, 65535, []string{"listens=127.0.0.1:3478"}},
	} {
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		p := &gatewayProcess{
			cfg: &upConfig{turnUsersFile: file, iceListen: ":3479"}, address: c.address, log: slog.New(slog.NewTextHandler(&log, nil)),
		}
		p.warnOfTURN(netip.MustParseAddrPort(c.at), c.low, c.high)
		if n := strings.Count(log.String(), "level=WARN"); n != len(c.want) {
			t.Errorf("%s: %d warnings, want %d", c.name, n, len(c.want))
		}
		for _, want := range c.want {
			if !strings.Contains(log.String(), want) {
				t.Errorf("%s: want %s in\n%s", c.name, want, &log)
			}
		}
	}
}

func TestTURN_RefusesWhatMeansSomethingElse(t *testing.T) {
	for _, text := range []string{"0.0.0.0", "::"} {
		if _, err := networks("--turn.allow-peers", []string{text}); err == nil || !strings.Contains(err.Error(), text+"/0") {
			t.Errorf("%s: %v", text, err)
		}
	}
	c := &upConfig{}
	f := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.register(f)
	c.publicAddress = "192.0.2.1"
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct{ flag, value string }{
		{"turn.allocations-per-user", "0"}, {"turn.relays", "-1"}, {"turn.permissions-per-user", "-1"}, {"turn.permissions", "0"},
		{"turn.channels-per-user", "-1"}, {"turn.channels", "0"}, {"turn.bytes-per-second", "-1"},
		{"turn.session-bytes-per-second", "-1"}, {"turn.node-bytes-per-second", "-1"},
	} {
		good := f.Lookup(bad.flag).DefValue
		if err := f.Set(bad.flag, bad.value); err != nil {
			t.Fatal(err)
		}
		if err := c.validate(); err == nil || !strings.Contains(err.Error(), "--"+bad.flag+" "+bad.value) {
			t.Errorf("--%s %s: %v", bad.flag, bad.value, err)
		}
		if err := f.Set(bad.flag, good); err != nil {
			t.Fatal(err)
		}
	}
}
