// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
)

// The headers by which v1 nodes speak for others change nothing, whoever sends
// them, whatever they say and however they are spelled: every procedure of
// every service answers with the very same words.
func TestProxyHeaders_ChangeNothing(t *testing.T) {
	s := serve(t, nil)
	const proxiedFor, proxiedFrom = "X-Webmesh-Proxied-For", "X-Webmesh-Proxied-From"
	forgeries := [][]string{
		{proxiedFor, "admin"},
		{proxiedFor, "gw-2"},
		{proxiedFrom, "gw-1"},
		{proxiedFrom, "gw-2", proxiedFor, "admin"},
		{proxiedFrom, "gw-1", proxiedFor, "gw-2"},
		{proxiedFrom, "laptop", proxiedFor, "admin", proxiedFor, "nobody"},
		{"x-webmesh-PROXIED-for", "admin", "X-webmesh-proxied-FROM", "gw-2"},
		{proxiedFor + "-Bin", "YWRtaW4", proxiedFrom + "-Bin", "Z3ctMg"},
		{proxiedFor, "admin", proxiedFrom, "gw-2", "X-Webmesh-Prefer-Leader", "true", "X-Forwarded-For", "127.0.0.3"},
	}
	s.writes = newBuckets(writeRate, 100*writeBurst) // what is limited says so before it is denied
	public, member := httpClient(t, true, "", nil), httpClient(t, true, "127.0.0.2", nil)
	for name, caller := range map[string]struct {
		client *http.Client
		addr   string
		id     string
	}{
		"a stranger":            {public, s.public, ""},
		"a user without a role": {bearer(public, "nobody"), s.public, "nobody"},
		"a user with a role":    {bearer(public, "viewer"), s.public, "viewer"},
		"a member":              {member, s.mesh, "laptop"},
		"a stranger in between": {public, s.mesh, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, m := range everyMethod(t) {
				answer := func(c *http.Client) string {
					err := callAny(testContext(t), c, "http://"+caller.addr, m)
					s.writes.giveBack(caller.id) // how many changes one may make is not the question here
					if err == nil {
						return "ok"
					}
					return connect.CodeOf(err).String() + ": " + err.Error()
				}
				want := answer(caller.client)
				for _, forged := range forgeries {
					c := caller.client
					for i := 0; i < len(forged); i += 2 {
						c = withHeader(c, forged[i], forged[i+1])
					}
					if got := answer(c); got != want {
						t.Errorf("%s with %s: got %q, want %q", procedureOf(m), strings.Join(forged, " "), got, want)
					}
				}
			}
		})
	}
	if n := s.node.writes(); n != 0 {
		t.Errorf("%d changes reached the node", n)
	}
}
