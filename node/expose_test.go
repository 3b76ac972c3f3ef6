// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

func TestParseExpose(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want Expose
	}{
		{"tcp:8080=127.0.0.1:3000", Expose{"tcp", 8080, "127.0.0.1:3000", ""}},
		{"tcp:127.0.0.1:22", Expose{"tcp", 22, "127.0.0.1:22", ""}},
		{"udp:53=[::1]:5353", Expose{"udp", 53, "[::1]:5353", ""}},
		{"tcp:80=web.internal:8080,kind=http", Expose{"tcp", 80, "web.internal:8080", "http"}},
	} {
		got, err := ParseExpose(tc.in)
		if err != nil || got != tc.want {
			t.Errorf("ParseExpose(%q) = %+v, %v; want %+v", tc.in, got, err, tc.want)
		}
	}
	for _, in := range []string{
		"", "tcp", "tcp:", "tcp:80", "icmp:80=127.0.0.1:80", "tcp:0=127.0.0.1:80", "tcp:65536=127.0.0.1:80",
		"tcp:80=127.0.0.1", "tcp:80=127.0.0.1:0", "tcp:80=:80", "TCP:80=127.0.0.1:80",
	} {
		if got, err := ParseExpose(in); !errors.Is(err, mesh.ErrInvalid) {
			t.Errorf("ParseExpose(%q) = %+v, %v; want ErrInvalid", in, got, err)
		}
	}
}

func TestValidateExpose_RefusesTwiceAndOwnPorts(t *testing.T) {
	web := Expose{Protocol: "tcp", Port: 80, Target: "127.0.0.1:1"}
	own := []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}}
	if err := validateExpose([]Expose{web, {Protocol: "udp", Port: 80}, {Protocol: "udp", Port: 8443}}, own); err != nil {
		t.Errorf("a legal list: %v", err)
	}
	if err := validateExpose([]Expose{web, web}, own); err == nil || !strings.Contains(err.Error(), "exposed twice") {
		t.Errorf("the same port twice: %v", err)
	}
	if err := validateExpose([]Expose{{Protocol: "tcp", Port: 8443}}, own); err == nil || !strings.Contains(err.Error(), "the node's own") {
		t.Errorf("the node's own port: %v", err)
	}
}
