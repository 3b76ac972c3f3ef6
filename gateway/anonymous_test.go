// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"io"
	"net/http"
	"testing"

	"connectrpc.com/grpchealth"

	"github.com/meshgate/meshgate/node/mesh"
)

// Requests without credentials that wait make room for one another, and those
// with credentials are not among them.
func TestAnonymous_LongestWaitingMakesRoom(t *testing.T) {
	s := serve(t, nil)
	const limit = 150
	s.nameless.limit = limit
	base := "http://" + s.public
	ctx := testContext(t)
	known, err := watchAs(t, ctx, bearer(httpClient(t, true, "127.0.0.5", nil), "viewer"), base)
	if err != nil {
		t.Fatal(err)
	}
	const extra = 20
	ended := make(chan error, limit+extra)
	var clients []*http.Client
	// wait opens a call whose message never comes.
	wait := func(i int) {
		if i%maxStreams == 0 {
			clients = append(clients, httpClient(t, true, "127.0.0.5", nil))
		}
		body, message := io.Pipe()
		t.Cleanup(func() { _ = message.Close() })
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/"+grpchealth.HealthV1ServiceName+"/Watch", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		client := clients[len(clients)-1]
		go func() {
			res, err := client.Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			ended <- err
		}()
	}
	for i := range limit + extra {
		wait(i)
	}
	for range extra {
		<-ended
	}
	if a := ask(t, httpClient(t, true, "127.0.0.5", nil), http.MethodGet, base+"/livez", ""); a.StatusCode != http.StatusOK {
		t.Errorf("a newcomer gets %s", a.Status)
	}
	if err := getNode(t, bearer(httpClient(t, true, "127.0.0.5", nil), "viewer"), base); err != nil {
		t.Errorf("somebody known: %v", err)
	}
	s.node.set(changed(8, func(s *mesh.Snapshot) { s.Nodes = s.Nodes.Without("laptop") }))
	if !known.Receive() {
		t.Errorf("the stream of somebody known made room: %v", known.Err())
	}
	if n := s.metric(t, "meshgate_gateway_requests_displaced_total"); n < extra || n > extra+2 {
		t.Errorf("counted %v, want %d to %d", n, extra, extra+2)
	}
}
