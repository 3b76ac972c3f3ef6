// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// registryKeys hold the mesh; only its own services write them.
	registryKeys = "/registry/"
	// raftKeys are where v1 nodes keep their log. Nobody reads or writes them.
	raftKeys = "/raft/"
	// secretKeys are where gateways keep what is for nobody else.
	secretKeys = "/meshgate/secrets/"
	// maxKey bounds keys and prefixes, in bytes; the store has the same bound.
	maxKey = 4 << 10
)

// space is a part of the registry whose keys have the same readers.
type space struct {
	prefix   string
	resource v1.RuleResource
	// mesh is true for what members read without a role, and others with the
	// role that lets them read the mesh.
	mesh bool
}

func spaces() []space {
	return []space{
		{prefix: registryKeys + "nodes/", resource: v1.RuleResource_RESOURCE_EDGES, mesh: true},
		{prefix: registryKeys + "edges/", resource: v1.RuleResource_RESOURCE_EDGES, mesh: true},
		{prefix: registryKeys + "meshstate/", resource: v1.RuleResource_RESOURCE_EDGES, mesh: true},
		{prefix: registryKeys + "roles/", resource: v1.RuleResource_RESOURCE_ROLES},
		{prefix: registryKeys + "rolebindings/", resource: v1.RuleResource_RESOURCE_ROLE_BINDINGS},
		{prefix: registryKeys + "groups/", resource: v1.RuleResource_RESOURCE_GROUPS},
		{prefix: registryKeys + "network-acls/", resource: v1.RuleResource_RESOURCE_NETWORK_ACLS},
		{prefix: registryKeys + "routes/", resource: v1.RuleResource_RESOURCE_ROUTES},
	}
}

// everyKey is the action of reading whatever there is.
func everyKey() mesh.Action {
	return mesh.Action{Resource: v1.RuleResource_RESOURCE_ALL, Verb: v1.RuleVerb_VERB_GET}
}

// KeyActions are the actions that it takes c to read one key.
func KeyActions(c Caller, key string) ([]mesh.Action, error) {
	if err := noInternal(key); err != nil {
		return nil, err
	}
	for _, s := range spaces() {
		if name, ok := strings.CutPrefix(key, s.prefix); ok {
			return s.actions(c, name), nil
		}
	}
	if key == "" || strings.HasPrefix(key, registryKeys) {
		return []mesh.Action{everyKey()}, nil
	}
	return []mesh.Action{{Resource: v1.RuleResource_RESOURCE_PUBSUB, Name: key, Verb: v1.RuleVerb_VERB_GET}}, nil
}

// PrefixActions are the actions that it takes c to read all keys that start
// with prefix: those of each part of the registry that it touches, or the
// folder of other keys, up to the last "/" of the prefix. (A role for one key
// says nothing of those that begin like it.) A prefix of keys of both kinds
// takes a role that reads everything.
func PrefixActions(c Caller, prefix string) ([]mesh.Action, error) {
	if err := noInternal(prefix); err != nil {
		return nil, err
	}
	if strings.HasPrefix(registryKeys, prefix) {
		return []mesh.Action{everyKey()}, nil
	}
	if !strings.HasPrefix(prefix, registryKeys) {
		folder := prefix[:strings.LastIndexByte(prefix, '/')+1]
		return []mesh.Action{{Resource: v1.RuleResource_RESOURCE_PUBSUB, Name: folder, Verb: v1.RuleVerb_VERB_GET}}, nil
	}
	var actions []mesh.Action
	known := false
	for _, s := range spaces() {
		if strings.HasPrefix(s.prefix, prefix) || strings.HasPrefix(prefix, s.prefix) {
			actions, known = append(actions, s.actions(c, "")...), true
		}
	}
	if !known {
		return []mesh.Action{everyKey()}, nil
	}
	return actions, nil
}

func (s space) actions(c Caller, name string) []mesh.Action {
	if s.mesh && c.Node != nil {
		return nil
	}
	if s.mesh {
		name = "" // as v1.Mesh reads it
	}
	return []mesh.Action{{Resource: s.resource, Name: name, Verb: v1.RuleVerb_VERB_GET}}
}

// visible reports whether a key that was found by a prefix may be shown to
// somebody who has the actions of that prefix; wide says that it may read
// everything.
func visible(key string, wide bool) bool {
	switch {
	case internal(key):
		return false
	case wide || !strings.HasPrefix(key, registryKeys):
		return true
	}
	return slices.ContainsFunc(spaces(), func(s space) bool { return strings.HasPrefix(key, s.prefix) })
}

// internal reports whether a key is for nobody but the gateways themselves.
func internal(key string) bool {
	return strings.HasPrefix(key, raftKeys) || strings.HasPrefix(key, secretKeys)
}

func noInternal(key string) error {
	for _, root := range []string{raftKeys, secretKeys} {
		if key == strings.TrimSuffix(root, "/") || strings.HasPrefix(key, root) {
			return fmt.Errorf("%w: keys under %s are internal; use those under %s, or your own", mesh.ErrDenied, root, registryKeys)
		}
	}
	return nil
}

// checkKey checks the key or prefix of a request.
func checkKey(field, key string) error {
	switch {
	case len(key) > maxKey:
		return fmt.Errorf("%w: %s: it is longer than %d bytes", mesh.ErrInvalid, field, maxKey)
	case strings.ContainsRune(key, 0):
		return fmt.Errorf("%w: %s: it holds a zero byte", mesh.ErrInvalid, field)
	}
	return nil
}

// checkPublished refuses keys that are not for applications, and those that
// something on the way could take for one: other spellings of a slash or a
// letter, escapes, empty and dotted segments.
func checkPublished(key string) error {
	if key == "" {
		return fmt.Errorf("%w: key is empty", mesh.ErrInvalid)
	}
	if err := checkKey("key", key); err != nil {
		return err
	}
	path := segments(key)
	for _, reserved := range []string{registryKeys, raftKeys, secretKeys} {
		root := strings.Split(strings.Trim(reserved, "/"), "/")
		if len(path) >= len(root) && slices.Equal(path[:len(root)], root) {
			return fmt.Errorf("%w: key: %q is, or looks like, a key under %s, which is reserved; choose another prefix",
				mesh.ErrInvalid, key, reserved)
		}
	}
	return nil
}

// segments are the parts of a key between slashes, in plain lower case letters,
// with every other spelling undone.
func segments(key string) []string {
	for range 3 { // escapes of escapes
		key = unescape(key)
	}
	key = strings.ToLower(strings.Map(plainRune, key))
	var path []string
	for segment := range strings.SplitSeq(key, "/") {
		switch segment = strings.TrimSpace(segment); {
		case segment == "" || segment == ".":
		case segment == ".." && len(path) > 0:
			path = path[:len(path)-1]
		case segment != "..":
			path = append(path, segment)
		}
	}
	return path
}

// unescape undoes the percent escapes that are well formed.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// plainRune undoes full-width forms and the look-alikes of a slash, and drops
// what nobody sees.
func plainRune(r rune) rune {
	switch {
	case r >= 0xff01 && r <= 0xff5e:
		r -= 0xff01 - '!'
	case r == '\u2044' || r == '\u2215' || r == '\u29f8' || r == '\u2571' || r == '\u1735':
		r = '/'
	case r < ' ' || r == 0x7f || r == '\u00ad' || r >= '\u200b' && r <= '\u200f' || r == '\u2060' || r == '\ufeff':
		return -1
	}
	if r == '\\' {
		return '/'
	}
	return r
}
