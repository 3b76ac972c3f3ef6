// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

// A node whose clock is wrong signs what the gateway's clock says, once it has
// heard it.
func TestPublicNode_SignsAtTheGatewaysTime(t *testing.T) {
	const ahead = 3 * time.Hour
	for name, tt := range map[string]struct {
		date func() string
		want time.Duration
	}{
		"another time": {func() string { return time.Now().Add(ahead).UTC().Format(http.TimeFormat) }, ahead},
		"the same":     {func() string { return time.Now().UTC().Format(http.TimeFormat) }, 0},
		"nonsense":     {func() string { return "soon" }, 0},
	} {
		next := handler(&other{})
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", tt.date())
			next.ServeHTTP(w, r)
		}))
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
		defer s.Close()
		var signed []time.Time
		p, err := NewPublicNode(s.URL, func(at time.Time) string {
			signed = append(signed, at)
			return "signed"
		}, TLSOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for range 2 {
			answer, err := p.Node().GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{}))
			if err != nil || answer.Msg.GetVersion() != "Bearer signed" {
				t.Fatalf("%s: %v, %v", name, answer, err)
			}
		}
		if got := time.Until(signed[0]).Abs(); got > time.Minute {
			t.Errorf("%s: at first %s from here", name, got)
		}
		if got := time.Until(signed[1]) - tt.want; got.Abs() > time.Minute {
			t.Errorf("%s: then %s from the gateway's time", name, got)
		}
	}
}
