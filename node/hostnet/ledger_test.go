// SPDX-License-Identifier: Apache-2.0

package hostnet

import (
	"errors"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

func TestParseSetting_TakesOnlyWhatIsOurs(t *testing.T) {
	for _, s := range []setting{
		{"ipv4/conf/eth0/forwarding", "1", "0"},
		{"ipv4/conf/eth0.10/forwarding", "1", "0"},
		{"ipv6/conf/eth0/force_forwarding", "1", "0"},
		{"ipv6/conf/all/forwarding", "1", "0"},
		{"ipv6/conf/eth0/accept_ra", "2", "1"},
	} {
		if got, err := parseSetting(s.note()); err != nil || got != s {
			t.Errorf("%v: %v, %v", s, got, err)
		}
		if len(s.note()) > maxNote {
			t.Errorf("%v: the note has %d characters", s, len(s.note()))
		}
	}
	for _, note := range []string{
		"", "setting", "setting ", "setting ipv4/conf/eth0/forwarding 1", "ipv4/conf/eth0/forwarding 1 0",
		"setting ipv4/conf/eth0/forwarding 1 0 0", "setting ipv4/conf/eth0/forwarding 1 x", "setting ipv4/conf/eth0/forwarding 10 0",
		"setting ipv4/conf/eth0/forwarding  0", "setting ipv4/conf/../forwarding 1 0", "setting ipv4/conf/a/b/forwarding 1 0",
		"setting ipv4/ip_forward 1 0", "setting ../../kernel/core_pattern 1 0", "setting ipv6/conf/eth0/forwarding 1 0",
		"setting ipv4/conf//forwarding 1 0", "setting ipv4/conf/abcdefghijklmnop/forwarding 1 0", "setting ipv4/conf/eth0/rp_filter 1 0",
	} {
		if s, err := parseSetting(note); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("%q: %v, %v, want ErrInvalid", note, s, err)
		}
	}
}

func FuzzParseSetting(f *testing.F) {
	f.Add("setting ipv4/conf/eth0/forwarding 1 0")
	f.Add("setting ipv6/conf/../../x/accept_ra 2 1")
	f.Fuzz(func(t *testing.T, note string) {
		s, err := parseSetting(note)
		if err != nil {
			return
		}
		if s.note() != note || !ours(s.path) {
			t.Errorf("%q became %v", note, s)
		}
	})
}

func TestTableName(t *testing.T) {
	for name, want := range map[string]string{
		"meshgate0": "meshgate_meshgate0", "wg-office.1": "meshgate_wg-office.1", "a@b": "meshgate_a/40b", "a/b": "meshgate_a/2fb",
	} {
		if got := tableName(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}
