// SPDX-License-Identifier: Apache-2.0

package signaling

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// told is an error with a public text, as nodes make it.
type told struct{ text string }

func (e told) Error() string { return e.text }
func (told) Unwrap() error   { return mesh.ErrUnavailable }

func TestDialFailure(t *testing.T) {
	local := Destination{Protocol: "tcp", Host: "localhost", Port: 80}
	const silent = "phone has never shaken hands with this gateway; start WireGuard on it"
	op := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, tc := range []struct {
		name    string
		d       Destination
		err     error
		code    string
		message string
	}{
		{"unknown", local, errors.New("dial tcp 172.16.0.2:80: weird"), "unavailable", "phone: tcp port 80 cannot be reached"},
		{"other host", Destination{"udp", "10.0.0.9", 53}, errors.New("x"), "unavailable", "10.0.0.9: udp port 53 cannot be reached"},
		{"loopback of v1", Destination{"tcp", "127.0.0.1", 80}, errors.New("x"), "unavailable", "phone: tcp port 80 cannot be reached"},
		{"refused", local, op(syscall.ECONNREFUSED), "unavailable", "phone: tcp port 80 refused the connection; is something listening there?"},
		{"late", local, op(context.DeadlineExceeded), "deadline_exceeded", "phone: tcp port 80 did not answer in time"},
		{"told", local, op(told{silent}), "unavailable", silent},
		{"told, wrapped at the end", local, op(fmt.Errorf("%s: %w", silent, mesh.ErrUnavailable)), "unavailable", silent},
		{"told, wrapped at the front", local, fmt.Errorf("dial 172.16.0.2: %w", fmt.Errorf("%w: %s", mesh.ErrUnavailable, silent)), "unavailable", silent},
		{"told and late", local, errors.Join(context.DeadlineExceeded, told{silent}), "unavailable", silent},
		{"bare", local, mesh.ErrUnavailable, "unavailable", "phone: tcp port 80 cannot be reached"},
	} {
		got := dialFailure("phone", tc.d, tc.err)
		if got.Code != tc.code || got.Message != tc.message {
			t.Errorf("%s: %s: %s", tc.name, got.Code, got.Message)
		}
	}
}
