// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/meshgate/meshgate/node/mesh"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	v1 "github.com/meshgate/meshgate/proto/v1"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// writable is a fakeMesh that takes groups. It knows Objects if change is set.
type writable struct {
	*fakeMesh
	puts   []string
	change func(*meshgatev1.ChangeRequest) (*meshgatev1.ChangeResponse, error)
}

func (f *writable) PutGroup(_ context.Context, r *connect.Request[v1.Group]) (*connect.Response[emptypb.Empty], error) {
	f.puts = append(f.puts, r.Msg.GetName()+" of "+subjectsText(r.Msg.GetSubjects()))
	return connect.NewResponse(&emptypb.Empty{}), nil
}

func (f *writable) GetGroup(context.Context, *connect.Request[v1.Group]) (*connect.Response[v1.Group], error) {
	return connect.NewResponse(&v1.Group{Name: "devs", Subjects: []*v1.Subject{{Name: "alice", Type: v1.SubjectType_SUBJECT_USER}}}), nil
}

func (f *writable) Change(_ context.Context, r *connect.Request[meshgatev1.ChangeRequest]) (*connect.Response[meshgatev1.ChangeResponse], error) {
	answer, err := f.change(r.Msg)
	return connect.NewResponse(answer), err
}

// run runs a command against f.
func (f *writable) run(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewAdminHandler(f))
	mux.Handle(v1connect.NewMeshHandler(f))
	mux.Handle(v1connect.NewStorageQueryServiceHandler(f))
	if f.change != nil {
		mux.Handle(meshgatev1connect.NewObjectsHandler(f))
	}
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	var out, errs bytes.Buffer
	code = run(t.Context(), append(args, "--server", server.URL, "--token", "t"), &out, &errs)
	return code, errs.String()
}

func fileOf(t *testing.T, text string) string {
	t.Helper()
	path := t.TempDir() + "/policy.yaml"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const twoGroups = "groups: [{name: one, subjects: [{type: user, name: bob}]}, {name: two, subjects: [{type: group, name: one}]}]\n"

// A gateway of before gets what it knows: one object after another, after a look
// at the mesh.
func TestPut_AtAGatewayOfBefore(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		code int
		puts string
		text string
	}{
		"a policy":               {[]string{"policy", "put", fileOf(t, twoGroups)}, exitOK, "one of user:bob, two of group:one", "older than this command"},
		"a policy that is wrong": {[]string{"policy", "put", fileOf(t, twoGroups+"rolebindings: [{name: b, role: absent, subjects: [{type: user, name: bob}]}]")}, exitFailed, "", `no role "absent"`},
		"only a look":            {[]string{"policy", "put", "--dry-run", fileOf(t, twoGroups+"rolebindings: [{name: b, role: absent, subjects: [{type: user, name: bob}]}]")}, exitFailed, "", `no role "absent"`},
		"a file of groups":       {[]string{"put", "groups", "-f", fileOf(t, twoGroups)}, exitOK, "one of user:bob, two of group:one", "groups one: put"},
		"a member":               {[]string{"put", "groups", "devs", "--add", "--user", "bob"}, exitOK, "devs of user:alice,user:bob", "in this moment is lost"},
	} {
		f := &writable{fakeMesh: &fakeMesh{}}
		code, stderr := f.run(t, tt.args...)
		if code != tt.code || !strings.Contains(stderr, tt.text) || strings.Join(f.puts, ", ") != tt.puts {
			t.Errorf("%s: exit code %d, put %v\n%s", name, code, f.puts, stderr)
		}
	}
}

// What is said of a call that failed is no more than what is known.
func TestPolicyPut_SaysWhatAnErrorLeaves(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		text string
	}{
		"refused":    {connect.NewError(connect.CodeFailedPrecondition, errors.New(`changes: [1]: put group "two": failed precondition: subjects: x`)), "put groups two: failed precondition: subjects: x; nothing of "},
		"misread":    {connect.NewError(connect.CodeInvalidArgument, errors.New(`changes: [0]: name: x`)), "put groups one: name: x; nothing of "},
		"denied":     {connect.NewError(connect.CodePermissionDenied, errors.New("no role")), "no role; nothing of "},
		"undecided":  {connect.NewError(connect.CodeUnavailable, errors.New("gone")), "gone; whether it happened is not known: do it again"},
		"cut short":  {nil, "answered about 0 of 2 objects"},
		"of another": {connect.NewError(connect.CodeInvalidArgument, errors.New(`changes: [7]: name: x`)), "changes: [7]: name: x"},
	} {
		f := &writable{fakeMesh: &fakeMesh{}, change: func(*meshgatev1.ChangeRequest) (*meshgatev1.ChangeResponse, error) {
			return &meshgatev1.ChangeResponse{}, tt.err
		}}
		code, stderr := f.run(t, "policy", "put", fileOf(t, twoGroups))
		if code != exitFailed || !strings.Contains(stderr, tt.text) || len(f.puts) > 0 {
			t.Errorf("%s: exit code %d, put %v\n%s", name, code, f.puts, stderr)
		}
	}
}

func TestPolicyPut_SaysThatNothingReachedTheGateway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there any more
	var out, errs bytes.Buffer
	code := run(t.Context(), []string{"policy", "put", fileOf(t, twoGroups), "--server", "http://" + l.Addr().String(), "--token", "t"}, &out, &errs)
	if text := errs.String(); code != exitFailed || !strings.Contains(text, "connection refused") || !strings.Contains(text, "; nothing of ") {
		t.Errorf("exit code %d\n%s", code, text)
	}
}

// A group that somebody has changed is read and tried again; nothing else is.
func TestRegroup_TriesAgainAfterAConflict(t *testing.T) {
	tries := 0
	f := &writable{fakeMesh: &fakeMesh{}, change: func(m *meshgatev1.ChangeRequest) (*meshgatev1.ChangeResponse, error) {
		tries++
		if want := "user:alice"; subjectsText(m.GetExpected()[0].GetGroup().GetSubjects()) != want || m.GetExpected()[0].GetAbsent() {
			t.Errorf("expected %v", m.GetExpected())
		}
		if tries == 3 {
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("enough"))
		}
		return nil, connect.NewError(connect.CodeAborted, errors.New("somebody has changed it"))
	}}
	code, stderr := f.run(t, "put", "groups", "devs", "--add", "--user", "bob")
	if code != exitFailed || tries != 3 || !strings.Contains(stderr, "enough") {
		t.Errorf("exit code %d after %d tries\n%s", code, tries, stderr)
	}
}

func TestPartsOf_DividesWhatOneCallDoesNotTake(t *testing.T) {
	group := func(i, size int) wish {
		return wish{kind: "groups", object: &v1.Group{Name: fmt.Sprint(i), Subjects: []*v1.Subject{{Name: strings.Repeat("x", size)}}}}
	}
	for _, tt := range []struct {
		n, size int
		want    []int
	}{
		{1, 1, []int{1}},
		{1, 2 * maxTogether, []int{1}},
		{3, 2 * maxTogether, []int{1, 1, 1}},
		{mesh.MaxChanges, 1, []int{mesh.MaxChanges}},
		{mesh.MaxChanges + 1, 1, []int{mesh.MaxChanges, 1}},
		{4, maxTogether * 2 / 5, []int{2, 2}},
	} {
		var wishes []wish
		for i := range tt.n {
			wishes = append(wishes, group(i, tt.size))
		}
		var got []int
		n := 0
		for _, part := range partsOf(wishes) {
			got = append(got, len(part))
			for _, w := range part {
				if objectName(w.object) != fmt.Sprint(n) {
					t.Fatalf("%q in place of %d", objectName(w.object), n)
				}
				n++
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(tt.want) || n != tt.n {
			t.Errorf("%d of %d bytes: parts of %v, want %v", tt.n, tt.size, got, tt.want)
		}
	}
}
