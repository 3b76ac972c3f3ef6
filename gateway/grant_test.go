// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/bcrypt"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
	"github.com/meshgate/meshgate/signaling"
)

// opened is a StartDataChannel call under way, and who the service took for its caller.
type opened struct {
	stream *connect.BidiStreamForClient[v1.StartDataChannelRequest, v1.DataChannelOffer]
	caller signaling.Caller
}

// open begins a StartDataChannel call to web-1.
func open(t *testing.T, s *served, c *http.Client) *opened {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream := v1connect.NewWebRTCClient(c, "http://gate").StartDataChannel(ctx)
	if err := stream.Send(&v1.StartDataChannelRequest{NodeId: "web-1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	return &opened{stream: stream, caller: <-s.signaling.callers}
}

// end waits for the call's end.
func (o *opened) end() error {
	_, err := o.stream.Receive()
	return err
}

// alive shows that the call goes on.
func (o *opened) alive(t *testing.T) {
	t.Helper()
	if err := o.stream.Send(&v1.StartDataChannelRequest{Candidate: "x"}); err != nil {
		t.Error(err)
	}
	if m, err := o.stream.Receive(); err != nil || m.GetCandidate() != "x" {
		t.Errorf("a call of somebody else ended: %v", err)
	}
	if err := o.caller.Allowed(); err != nil {
		t.Errorf("somebody else lost the right: %v", err)
	}
}

// watching begins a WatchMesh call.
func watching(t *testing.T, c *http.Client) *received[meshgatev1.WatchMeshResponse] {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	stream, err := meshgatev1connect.NewWatchClient(c, "http://gate").WatchMesh(ctx, connect.NewRequest(&meshgatev1.WatchMeshRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	r := receive(t, stream)
	if len(r.now()) != 1 {
		t.Fatal("no first message")
	}
	return r
}

func withToken(c *http.Client, token string) *http.Client {
	return withHeader(c, "Authorization", "Bearer "+token)
}

// A token that leaves its file takes along what it opened: calls that wait in
// silence, and the right of sessions that outlive their call. Another token of
// the same person does not suffer.
func TestGrant_EndsWithTheToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	now := time.Now()
	writeFile(t, path, hashOf("stolen")+" admin\n"+hashOf("kept")+" admin\n", now.Add(-time.Hour))
	tokens, err := NewTokens(nil, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	var changes atomic.Int64
	bubble(t, func(c *Config) {
		c.Access.Authenticators = []Authenticator{tokens}
		c.Access.Changed = func() { changes.Add(1) }
	}, func(t *testing.T, s *served, p *pipes) {
		s.signaling.callers = make(chan signaling.Caller, 10)
		thief, owner := open(t, s, withToken(p.client(t, true), "stolen")), open(t, s, withToken(p.client(t, true), "kept"))
		watch, kept := watching(t, withToken(p.client(t, true), "stolen")), watching(t, withToken(p.client(t, true), "kept"))
		pass(time.Minute + reviewInterval/2)
		if n := changes.Load(); n != 0 {
			t.Errorf("%d changes while nothing changed", n)
		}
		writeFile(t, path, "", now.Add(-time.Minute)) // as some programs do before they write
		owner.alive(t)
		pass(settleTime / 2)
		owner.alive(t)
		writeFile(t, path, hashOf("kept")+" admin\n", now)
		thief.alive(t)
		pass(settleTime)
		if err := thief.caller.Allowed(); err == nil || !strings.Contains(err.Error(), "sign in again") {
			t.Errorf("the session may go on: %v", err)
		}
		pass(reviewInterval)
		synctest.Wait()
		for name, end := range map[string]func() error{"channel": thief.end, "watch": func() error { return <-watch.end }} {
			if err := end(); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "sign in again") {
				t.Errorf("%s: %v", name, err)
			}
		}
		owner.alive(t)
		select {
		case err := <-kept.end:
			t.Errorf("the other token's watch ended: %v", err)
		default:
		}
		if n := changes.Load(); n != 2 { // when the file changed, and when it had settled
			t.Errorf("%d changes", n)
		}
		if len(s.grants.ends) != 2 {
			t.Errorf("%d rights are remembered", len(s.grants.ends))
		}
		writeFile(t, path, hashOf("kept")+" viewer\n", now.Add(time.Hour)) // stands for somebody else now
		pass(2 * reviewInterval)
		if err := owner.end(); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("a token of another person: %v", err)
		}
	})
}

func TestGrant_EndsWithThePassword(t *testing.T) {
	line := func(user, password string) string {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		return user + ":" + string(hash) + "\n"
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	now := time.Now()
	viewer := line("viewer", "kept")
	writeFile(t, path, line("admin", "old")+viewer, now.Add(-time.Hour))
	passwords, err := newPasswords(path, nil, bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	login := func(c *http.Client, user, password string) *http.Client {
		return withHeader(withHeader(c, headerUsername, user), headerPassword, password)
	}
	bubble(t, func(c *Config) { c.Access.Authenticators = []Authenticator{passwords} }, func(t *testing.T, s *served, p *pipes) {
		s.signaling.callers = make(chan signaling.Caller, 10)
		changed := open(t, s, login(p.client(t, true), "admin", "old"))
		other := watching(t, login(p.client(t, true), "viewer", "kept"))
		writeFile(t, path, line("admin", "new")+viewer, now)
		pass(2 * reviewInterval)
		if err := changed.end(); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("the old password: %v", err)
		}
		writeFile(t, path, line("admin", "new"), now.Add(time.Hour))
		pass(2 * reviewInterval)
		if err := <-other.end; connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("a user who is gone: %v", err)
		}
	})
}

// A role that goes ends calls that wait in silence, and names what is missing.
func TestGrant_EndsWithTheRole(t *testing.T) {
	bubble(t, nil, func(t *testing.T, s *served, p *pipes) {
		s.signaling.callers = make(chan signaling.Caller, 10)
		opener, admin := open(t, s, bearer(p.client(t, true), "opener")), open(t, s, bearer(p.client(t, true), "admin"))
		s.node.set(changed(8, func(m *mesh.Snapshot) {
			for i := range m.Roles {
				if m.Roles[i].Name == "opener" {
					m.Roles[i].Rules[0].Names = []string{"gw-2"}
				}
			}
		}))
		if err := opener.caller.Allowed(); err == nil || !strings.Contains(err.Error(), `"web-1"`) {
			t.Errorf("the session may go on: %v", err)
		}
		pass(reviewInterval)
		if err := opener.end(); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), `"web-1"`) {
			t.Errorf("got %v", err)
		}
		admin.alive(t)
	})
}

// What was revoked between the gate and the first message does not begin.
func TestGrant_RevokedBeforeTheFirstMessage(t *testing.T) {
	stands := true
	r := &grant{
		state: newFakeNode(testSnapshot()), rule: newRules(false)[v1connect.WebRTCStartDataChannelProcedure],
		stands: func() bool { return stands },
	}
	r.caller.ID = "opener"
	stands = false
	if err := r.admit(testSnapshot(), &v1.StartDataChannelRequest{NodeId: "web-1"}); err == nil {
		t.Error("it begins")
	}
	stands = true
	if err := r.check(); err == nil {
		t.Error("a right came back to a call that had lost it")
	}
}

// TURN credentials that a unary call mints for a user are good as long as the user
// may open channels. Who may not gets none, and is told why.
func TestListServers_CredentialsByARightThatLasts(t *testing.T) {
	var user string
	var allowed func() error
	s := serve(t, func(c *Config) {
		c.RelayServers = func(ctx context.Context, name string) []*v1.ICEServer {
			user, allowed = name, api.CallerFrom(ctx).Allowed
			return []*v1.ICEServer{{Urls: []string{"stun:192.0.2.1"}}}
		}
	})
	list := func(who string) *meshgatev1.ListServersResponse {
		t.Helper()
		res, err := meshgatev1connect.NewPathsClient(bearer(httpClient(t, true, "", nil), who), "http://"+s.public).
			ListServers(testContext(t), connect.NewRequest(&meshgatev1.ListServersRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	if m := list("viewer"); user != "" || !strings.Contains(m.GetNoCredential(), `"viewer" has no role that grants PUT on DATA_CHANNELS`) || len(m.GetIceServers()) != 1 {
		t.Errorf("servers for %q: %v", user, m)
	}
	both := mesh.RoleBinding{Name: "both", Role: "viewer", Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: "opener"}}}
	s.node.set(changed(8, func(s *mesh.Snapshot) { s.Bindings = append(s.Bindings, both) }))
	if m := list("opener"); user != "opener" || m.GetNoCredential() != "" || allowed == nil || allowed() != nil {
		t.Fatalf("servers for %q: %v", user, m)
	}
	s.node.set(changed(9, func(s *mesh.Snapshot) { s.Bindings = []mesh.RoleBinding{both} }))
	if err := allowed(); !errors.Is(err, mesh.ErrDenied) {
		t.Errorf("after the role is gone: %v", err)
	}
}
