// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/admin"
	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// stateNode is a fakeNode with a real registry: what a node does with state,
// without its data plane.
type stateNode struct {
	*fakeNode
	registry *registry.Registry
	objects  *admin.Objects
	// inForce is what the data plane follows; nil: the latest.
	inForce atomic.Pointer[mesh.Snapshot]
}

func (n *stateNode) Snapshot() *mesh.Snapshot {
	if s := n.inForce.Load(); s != nil {
		return s
	}
	return n.registry.Snapshot()
}

func (n *stateNode) Wait(ctx context.Context, after uint64) (*mesh.Snapshot, error) {
	return n.registry.Wait(ctx, after)
}

func (n *stateNode) Sync(ctx context.Context) (*mesh.Snapshot, error) { return n.registry.Sync(ctx) }

func (n *stateNode) Change(ctx context.Context, c mesh.Change, permit mesh.Permit) error {
	_, err := n.objects.Change(ctx, c, permit)
	return err
}

func (n *stateNode) ChangeAll(ctx context.Context, b mesh.Batch) (mesh.Outcome, error) {
	return n.objects.ChangeAll(ctx, b)
}

// newStateNode makes the mesh of gw-1, which serves it, and of web-1 and web-2.
// The user admin may do everything.
func newStateNode(t testing.TB) *stateNode {
	t.Helper()
	n := &stateNode{fakeNode: newFakeNode(nil)}
	n.registry = registry.New(n.keys, nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.registry.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		n.keys.Close()
	})
	var err error
	if n.objects, err = admin.New(n.registry, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := n.registry.Bootstrap(t.Context(), registry.Bootstrap{Self: mesh.Node{
		ID: "gw-1", PublicKey: testKey(t), Features: []mesh.Feature{{Kind: v1.Feature_NODES, Port: 8443}, {Kind: v1.Feature_MEMBERSHIP, Port: 8443}},
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return errors.Join(tx.PutNode(&mesh.Node{ID: "web-1", PublicKey: testKey(t)}), tx.PutNode(&mesh.Node{ID: "web-2", PublicKey: testKey(t)}))
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func testKey(t testing.TB) mesh.PublicKey {
	t.Helper()
	k, err := mesh.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

// serveState runs a gateway over a stateNode.
func serveState(t testing.TB) (*served, *stateNode) {
	t.Helper()
	n := newStateNode(t)
	return serve(t, func(c *Config) { c.Node = n }), n
}

// grant gives a user one role of the given rules, and takes what it had.
func (n *stateNode) grant(t testing.TB, who string, rules ...mesh.Rule) {
	t.Helper()
	if _, err := n.registry.Update(t.Context(), func(tx *registry.Tx) error {
		return errors.Join(tx.PutRole(mesh.Role{Name: "of-" + who, Rules: rules}), tx.PutRoleBinding(mesh.RoleBinding{
			Name: "of-" + who, Role: "of-" + who, Subjects: []mesh.Subject{{Type: v1.SubjectType_SUBJECT_USER, Name: who}},
		}))
	}); err != nil {
		t.Fatal(err)
	}
}

func allow(resource v1.RuleResource, verb v1.RuleVerb, names ...string) mesh.Rule {
	return mesh.Rule{Resources: []v1.RuleResource{resource}, Verbs: []v1.RuleVerb{verb}, Names: names}
}

// as calls a procedure of s with one message, as a user.
func (s *served) as(t *testing.T, who, procedure string, msg proto.Message) error {
	t.Helper()
	return callOnce(t, bearer(httpClient(t, true, "", nil), who), "http://"+s.public, procedure, msg)
}
