// SPDX-License-Identifier: Apache-2.0

package peer_test

import (
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
)

// A server that is not the one to believe is told from one that is not there.
func TestDistrusted_IsNotOutOfReach(t *testing.T) {
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	gone := httptest.NewTLSServer(nil)
	gone.Close()
	for name, tt := range map[string]struct {
		url  string
		pin  [sha256.Size]byte
		want bool
		text string
	}{
		"no pin":              {secure.URL, [sha256.Size]byte{}, true, "certificate"},
		"a wrong pin":         {secure.URL, [sha256.Size]byte{1}, true, "not the expected one: it is sha256:"},
		"the pin":             {secure.URL, peer.PinOf(secure.Certificate()), false, "404"},
		"no TLS":              {plain.URL[:4] + "s" + plain.URL[4:], [sha256.Size]byte{}, true, "HTTP response to HTTPS client"},
		"TLS at a plain URL":  {strings.Replace(secure.URL, "https", "http", 1), [sha256.Size]byte{}, false, "write https://"},
		"nobody":              {gone.URL, [sha256.Size]byte{}, false, "connection refused"},
		"nobody, without TLS": {strings.Replace(gone.URL, "https", "http", 1), [sha256.Size]byte{}, false, "connection refused"},
	} {
		c, err := peer.NewPublic(tt.url, "token", peer.TLSOptions{Pin: tt.pin})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Cluster().Status(t.Context(), connect.NewRequest(&meshgatev1.StatusRequest{}))
		if err == nil || peer.Distrusted(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: distrusted %v: %v", name, peer.Distrusted(err), err)
		}
		c.Close()
	}
}
