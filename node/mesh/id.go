// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxNameLen bounds every id and object name, in bytes. It is the length
	// of the longest DNS name, so that a name always fits into one.
	MaxNameLen = 253

	// Everyone is the name that stands for every node or subject.
	Everyone = "*"

	// groupPrefix marks the name of a group where a node id could stand.
	groupPrefix = "group:"

	// forbiddenRunes separate keys, paths and lists; no name holds them.
	forbiddenRunes = `/\:*?"'<>|,`
)

// ParseNodeID checks s as the id of a node. An id is a valid name (see
// ValidName) and none of the words that tools and the mesh DNS reserve: self,
// local, localhost, leader, voters, observers, in any case, because DNS
// ignores case. Errors wrap ErrInvalid and state the broken rule.
func ParseNodeID(s string) (NodeID, error) {
	if err := ValidName(s); err != nil {
		return "", fmt.Errorf("node id: %w", err)
	}
	switch strings.ToLower(s) {
	case "self", "local", "localhost", "leader", "voters", "observers":
		return "", fmt.Errorf("node id: %q is a reserved word: %w", s, ErrInvalid)
	}
	return NodeID(s), nil
}

// ValidName checks the name of a role, binding, group, ACL or route: 1 to
// MaxNameLen bytes of valid UTF-8 without control characters, without any of
// / \ : * ? " ' < > | , and neither "." nor "..". Errors wrap ErrInvalid and
// state the broken rule.
func ValidName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("name is empty: %w", ErrInvalid)
	case len(s) > MaxNameLen:
		return fmt.Errorf("name is longer than %d bytes: %w", MaxNameLen, ErrInvalid)
	case !utf8.ValidString(s):
		return fmt.Errorf("name is not valid UTF-8: %w", ErrInvalid)
	case s == "." || s == "..":
		return fmt.Errorf("name %q is a path: %w", s, ErrInvalid)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Errorf("name %q holds a control character: %w", s, ErrInvalid)
		}
		if strings.ContainsRune(forbiddenRunes, r) {
			return fmt.Errorf("name %q holds the character %q: %w", s, r, ErrInvalid)
		}
	}
	return nil
}

// ClearName checks a name that is given for the first time: as ValidName, and
// without characters that nobody sees or that turn the text around them, by which
// two names would look the same. Names that a mesh has already are not asked for
// that, so that they can be removed. Errors wrap ErrInvalid and state the broken rule.
func ClearName(s string) error {
	if err := ValidName(s); err != nil {
		return err
	}
	for _, r := range s {
		if r != ' ' && unicode.In(r, unicode.Cf, unicode.Z, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return fmt.Errorf("name %q holds the character %q, which nobody sees: %w", s, r, ErrInvalid)
		}
	}
	return nil
}

// GroupRef returns how lists of nodes name a group: "group:NAME".
func GroupRef(name string) string { return groupPrefix + name }

// ParseGroupRef returns NAME of "group:NAME", and false for anything else. It
// does not check NAME.
func ParseGroupRef(s string) (name string, ok bool) {
	return strings.CutPrefix(s, groupPrefix)
}

// validNodeRef checks an entry of a list of nodes: "*", "group:NAME" or a name.
// Reserved words pass: an entry may name a user as well as a node.
func validNodeRef(s string) error {
	if s == Everyone {
		return nil
	}
	if name, ok := ParseGroupRef(s); ok {
		return ValidName(name)
	}
	return ValidName(s)
}
