// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// A field that is mistyped in JSON is refused: left out, it would stand for
// everybody.
func TestJSON_UnknownFieldsAreRefused(t *testing.T) {
	s, _ := serveState(t)
	c := bearer(httpClient(t, false, "", nil), "admin")
	post := func(procedure, contentType, body string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "http://"+s.public+procedure, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	const cluster, tokens = "/meshgate.v1.Cluster/", "/meshgate.v1.Tokens/"
	for _, tt := range []struct {
		procedure, body string
		status          int
		text            string
	}{
		{v1connect.AdminPutNetworkACLProcedure, `{"name":"web","action":"ACTION_ACCEPT","sourceNodez":["alice"],"destinationNodes":["web-1"]}`, 400, `v1.NetworkACL: (line 1:40): unknown field \"sourceNodez\"; nothing was changed`},
		{v1connect.AdminPutRoleProcedure, `{"name":"r","rules":[{"verbs":["VERB_GET"],"resources":["RESOURCE_ROUTES"],"resourceName":["x"]}]}`, 400, "resourceName"},
		{v1connect.AdminPutRoleProcedure, `{"name":"r","rules":[{"verbs":["VERB_LOOK"],"resources":["RESOURCE_ROUTES"]}]}`, 400, "VERB_LOOK"},
		{v1connect.AdminPutNetworkACLProcedure, "", 400, "send {}"},
		{v1connect.MembershipUpdateProcedure, `{"id":"web-1","zone":"x"}`, 400, "zone"},
		{cluster + "Remove", `{"ID":"web-1"}`, 400, "ID"},
		{tokens + "CreateToken", `{"nam":"x"}`, 400, "nam"},
		{v1connect.AdminPutNetworkACLProcedure, `{"name":"web","action":"ACTION_ACCEPT","sourceNodes":["alice"],"destination_nodes":["web-1"]}`, 200, "{}"},
		{v1connect.AdminListNetworkACLsProcedure, "{}", 200, `"sourceNodes":`},
	} {
		for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
			if status, text := post(tt.procedure, contentType, tt.body); status != tt.status || !strings.Contains(strings.ReplaceAll(text, `": `, `":`), tt.text) {
				t.Errorf("%s %s: %d %s; want %d with %s", tt.procedure, tt.body, status, text, tt.status, tt.text)
			}
		}
	}
	acl, err := v1connect.NewAdminClient(c, "http://"+s.public).GetNetworkACL(testContext(t), connect.NewRequest(&v1.NetworkACL{Name: "web"}))
	if err != nil || len(acl.Msg.GetSourceNodes()) != 1 {
		t.Errorf("%v, %v", acl, err)
	}
}
