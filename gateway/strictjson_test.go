// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

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
		{v1connect.MembershipUpdateProcedure, `{"id":}`, 400, "syntax error"},
		// A newer client may ask an older gateway.
		{v1connect.MeshListNodesProcedure, `{"newer":1}`, 200, `"nodes":`},
		{v1connect.MeshListNodesProcedure, "", 400, "send {}"},
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

// Every procedure that writes refuses fields that it does not know, in whichever
// of its messages they are, and so do those that read beside it.
func TestJSON_NoServiceThatWritesDropsFields(t *testing.T) {
	s, _ := serveState(t)
	s.writes = newBuckets(writeRate, 100*writeBurst)
	c := bearer(httpClient(t, false, "", nil), "admin")
	for procedure, rule := range newRules(false) {
		service, method, _ := strings.Cut(procedure[1:], "/")
		writes := rule.writes || rule.guarded
		if changesNothing(service) {
			if writes {
				t.Errorf("%s writes, and its service is said to change nothing", procedure)
			}
			continue
		}
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}
		m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
		if m.IsStreamingClient() || m.IsStreamingServer() {
			if writes {
				t.Errorf("%s writes and is a stream, which this test does not call", procedure)
			}
			continue
		}
		for _, body := range mistyped(m.Input(), nil) {
			a := ask(t, c, http.MethodPost, "http://"+s.public+procedure, body, "Content-Type", "application/json")
			if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.text, `unknown field`) || !strings.Contains(a.text, "nothing was changed") {
				t.Errorf("%s %s: %d %s", procedure, body, a.StatusCode, a.text)
			}
		}
	}
}

// mistyped are messages of d, as JSON, with a field that nobody knows in the
// message itself, or in one of those in it.
func mistyped(d protoreflect.MessageDescriptor, in []protoreflect.FullName) []string {
	bodies := []string{`{"noSuchField":true}`}
	if in = append(in, d.FullName()); strings.HasPrefix(string(d.FullName()), "google.protobuf.") {
		return nil // has a form of its own
	}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if f.Message() == nil || slices.Contains(in, f.Message().FullName()) {
			continue
		}
		form := `{%q:%s}`
		inner := f.Message()
		switch {
		case f.IsList():
			form = `{%q:[%s]}`
		case f.IsMap():
			form = `{%q:{"1":%s}}`
			if inner = f.MapValue().Message(); inner == nil {
				continue
			}
		}
		for _, body := range mistyped(inner, slices.Clip(in)) {
			bodies = append(bodies, fmt.Sprintf(form, f.JSONName(), body))
		}
	}
	return bodies
}
