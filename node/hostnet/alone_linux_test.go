// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAlone(t *testing.T) {
	const eth4, eth6 = "ipv4/conf/eth0/forwarding", "ipv6/conf/eth0/force_forwarding"
	for _, tt := range []struct {
		name, path string
		all        map[string]string
		want       bool
	}{
		{"the host does not", eth4, map[string]string{allForwarding4: "0"}, true},
		{"a router", eth4, map[string]string{allForwarding4: "1"}, false},
		{"IPv6, the host does not", eth6, map[string]string{allForwarding6: "0", "ipv6/conf/all/force_forwarding": "0"}, true},
		{"a router of IPv6", eth6, map[string]string{allForwarding6: "1", "ipv6/conf/all/force_forwarding": "0"}, false},
		{"forced for all", eth6, map[string]string{allForwarding6: "0", "ipv6/conf/all/force_forwarding": "1"}, false},
		{"the switch of the host", allForwarding6, map[string]string{allForwarding6: "0"}, false},
		{"another setting", "ipv4/conf/eth0/rp_filter", map[string]string{allForwarding4: "0"}, false},
	} {
		dir := t.TempDir() + "/"
		for path, value := range tt.all {
			if err := errors.Join(os.MkdirAll(filepath.Dir(dir+path), 0o700), os.WriteFile(dir+path, []byte(value+"\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if got := alone(tt.path, dir); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

// Who flushes all tables takes the notes of a node that was killed along.
func TestClaim_WarnsOfWhatNoNoteTells(t *testing.T) {
	newHost(t)
	var log bytes.Buffer
	killed, next := New(nil), New(slog.New(slog.NewTextHandler(&log, nil)))
	wanted := []setting{{path: "ipv4/conf/lan0/forwarding", value: on}}
	for range 2 {
		if err := errors.Join(killed.claim(&firewall{mesh: "mesh0"}, wanted), killed.switchTo(wanted[0])); err != nil {
			t.Fatal(err)
		}
	}
	c, err := nft()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := next.claim(&firewall{mesh: "mesh0"}, wanted); err != nil {
			t.Fatal(err)
		}
	}
	if got := log.String(); strings.Count(got, "level=WARN") != 1 || !strings.Contains(got, "lan0/forwarding") {
		t.Errorf("the log says %q", got)
	}
}
