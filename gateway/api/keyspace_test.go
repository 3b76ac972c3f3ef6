// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"strings"
	"testing"

	"github.com/meshgate/meshgate/node/mesh"
)

// Whatever key is taken, it is none of the mesh's, and neither is what it
// becomes when somebody on the way tidies it up.
func FuzzCheckPublished(f *testing.F) {
	for _, seed := range []string{"", "a", "/registry/x", "//registry/x", "%2fregistry", "/a/../raft/x", "\\raft", "／ｒegistry", "/registryx", "a\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if err := checkPublished(key); err != nil {
			if !errors.Is(err, mesh.ErrInvalid) {
				t.Errorf("%q: %v", key, err)
			}
			return
		}
		for name, k := range map[string]string{
			"as it is": key, "unescaped": unescape(key), "in lower case": strings.ToLower(key),
			"without empty segments": "/" + strings.Join(strings.FieldsFunc(key, func(r rune) bool { return r == '/' }), "/"),
		} {
			if strings.HasPrefix(k, registryKeys) || strings.HasPrefix(k, raftKeys) {
				t.Errorf("%q %s is %q", key, name, k)
			}
		}
	})
}

// Nothing under /raft/ is for anybody, and no key or prefix is for everybody.
func FuzzKeyActions(f *testing.F) {
	for _, seed := range []string{"", "/", "/registry/", "/registry/roles/x", "/raft/x", "app", "/registry/nodes"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key string) {
		for _, read := range []func(Caller, string) ([]mesh.Action, error){KeyActions, PrefixActions} {
			actions, err := read(Caller{ID: "x"}, key)
			if strings.HasPrefix(key, raftKeys) != (err != nil) && key != "/raft" {
				t.Errorf("%q: %v", key, err)
			}
			if err == nil && len(actions) == 0 {
				t.Errorf("%q is for everybody", key)
			}
			for _, a := range actions {
				if a.Name == "" && a.Resource == everyKey().Resource {
					continue
				}
				if a.Name == "" && !strings.HasPrefix(key, registryKeys) && strings.Contains(key, "/") {
					t.Errorf("%q takes an action without a name: %v", key, a)
				}
			}
		}
	})
}
