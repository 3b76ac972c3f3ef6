// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/http"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// A gateway that waits for the end of its relays gets no new work of load balancers,
// serves what it gets all the same, and is not started anew by who probes for that.
func TestHealth_WhileDraining(t *testing.T) {
	var draining atomic.Bool
	s := serve(t, func(c *Config) { c.Draining = draining.Load })
	c := httpClient(t, false, "", nil)
	for _, on := range []bool{false, true, false} {
		draining.Store(on)
		want, status := 200, grpchealth.StatusServing
		if on {
			want, status = 503, grpchealth.StatusNotServing
		}
		for _, at := range []string{s.public, s.operators} {
			for path, want := range map[string]int{"/readyz": want, "/healthz": 200, "/livez": 200} {
				if a := ask(t, c, http.MethodGet, "http://"+at+path, ""); a.StatusCode != want {
					t.Errorf("draining %v: %s: %d %q, want %d", on, path, a.StatusCode, a.text, want)
				}
			}
		}
		if got, err := (checker{gateway: s.Gateway}).Check(testContext(t), &grpchealth.CheckRequest{}); err != nil || got.Status != status {
			t.Errorf("draining %v: gRPC says %v (%v), want %v", on, got, err, status)
		}
		client := v1connect.NewMeshClient(bearer(c, "admin"), "http://"+s.public)
		if _, err := client.GetNode(testContext(t), connect.NewRequest(&v1.GetNodeRequest{Id: "web-1"})); err != nil {
			t.Errorf("draining %v: a call: %v", on, err)
		}
	}
}
