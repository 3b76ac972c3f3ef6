// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// Who writes an address for a network is told how to write either.
func TestParseRoutes_SaysWhatAnAddressLacks(t *testing.T) {
	for text, want := range map[string]string{
		"10.8.0.0":         "10.8.0.0/16, or /32 for one address",
		"2001:db8::1":      "2001:db8::/64, or /128 for one address",
		"10.8.0.0/33":      `"10.8.0.0/33" is no network: invalid`,
		"fe80::1%eth0":     `"fe80::1%eth0" is no network: invalid`,
		"::ffff:192.0.2.1": `"::ffff:192.0.2.1" is no network: invalid`,
		"office":           `"office" is no network: invalid`,
	} {
		if _, err := mesh.ParseRoutes([]string{text}); !errors.Is(err, mesh.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
