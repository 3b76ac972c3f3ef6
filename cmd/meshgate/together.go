// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/peer"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	v1 "github.com/meshgate/meshgate/proto/v1"
)

// maxTogether is how large the objects of one call may be, in bytes of JSON: that is
// how the mesh keeps them, and it takes some more than this in one change.
const maxTogether = 5 << 19

// wish is an object as it is to be, or the name of one that is to go.
type wish struct {
	kind   string
	object proto.Message
	gone   bool
}

func (w wish) String() string {
	if w.gone {
		return "delete " + w.kind + " " + objectName(w.object)
	}
	return "put " + w.kind + " " + objectName(w.object)
}

// state is w as the API has it.
func (w wish) state() *meshgatev1.ObjectState {
	s := &meshgatev1.ObjectState{Absent: w.gone}
	switch m := w.object.(type) {
	case *v1.Role:
		s.Object = &meshgatev1.ObjectState_Role{Role: m}
	case *v1.RoleBinding:
		s.Object = &meshgatev1.ObjectState_RoleBinding{RoleBinding: m}
	case *v1.Group:
		s.Object = &meshgatev1.ObjectState_Group{Group: m}
	case *v1.NetworkACL:
		s.Object = &meshgatev1.ObjectState_NetworkAcl{NetworkAcl: m}
	case *v1.Route:
		s.Object = &meshgatev1.ObjectState_Route{Route: m}
	case *v1.MeshEdge:
		s.Object = &meshgatev1.ObjectState_Edge{Edge: m}
	}
	return s
}

// done says what became of w.
func (w wish) done(e meshgatev1.Effect) string {
	what := "put"
	switch {
	case e == meshgatev1.Effect_EFFECT_NONE && w.gone:
		what = "was not there"
	case e == meshgatev1.Effect_EFFECT_NONE:
		what = "is so already"
	case w.gone:
		what = "removed"
	}
	return fmt.Sprintf("%s %s: %s", w.kind, objectName(w.object), what)
}

// together makes wishes come true in one call, or none of them; nothing where
// dryRun is set, or where expected are not so.
func together(ctx context.Context, c calls, wishes, expected []wish, dryRun bool) ([]meshgatev1.Effect, error) {
	m := &meshgatev1.ChangeRequest{DryRun: dryRun}
	for _, w := range wishes {
		m.Changes = append(m.Changes, w.state())
	}
	for _, w := range expected {
		m.Expected = append(m.Expected, w.state())
	}
	answer, err := c.Objects().Change(ctx, connect.NewRequest(m))
	if err != nil {
		return nil, about(wishes, err)
	}
	effects := answer.Msg.GetEffects()
	if len(effects) != len(wishes) {
		return nil, fmt.Errorf("the gateway answered about %d of %d objects", len(effects), len(wishes))
	}
	return effects, nil
}

// unknownTogether reports whether a gateway does not know how to make changes
// together, as those of before.
func unknownTogether(err error) bool { return connect.CodeOf(err) == connect.CodeUnimplemented }

// changePlace is how a gateway names one of several changes.
var changePlace = regexp.MustCompile(`changes: \[([0-9]+)\]: `)

// placed is an error that names an object in the place of its index.
type placed struct {
	error
	text string
}

func (e placed) Error() string { return e.text }
func (e placed) Unwrap() error { return e.error }

// about is err, with the name of the wish that it is about.
func about(wishes []wish, err error) error {
	text := err.Error()
	at := changePlace.FindStringSubmatchIndex(text)
	if at == nil {
		return err
	}
	i, parsed := strconv.Atoi(text[at[2]:at[3]])
	if parsed != nil || i >= len(wishes) {
		return err
	}
	return placed{err, text[:at[0]] + wishes[i].String() + ": " + text[at[1]:]}
}

// undecided reports whether an error leaves open if a call was carried out. One that
// has not reached the gateway was not.
func undecided(err error) bool {
	var way *net.OpError
	if errors.As(err, &way) && way.Op == "dial" || peer.Distrusted(err) {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeUnknown, connect.CodeInternal:
		return true
	}
	return false
}

// partsOf divides wishes, in their order, into what fits into one call each.
func partsOf(wishes []wish) [][]wish {
	var parts [][]wish
	from, size := 0, 0
	for i, w := range wishes {
		n := 0
		if raw, err := protojson.Marshal(w.object); err == nil { // else the gateway says what is wrong with it
			n = len(raw)
		}
		if i > from && (size+n > maxTogether || i-from == mesh.MaxChanges) {
			parts, from, size = append(parts, wishes[from:i]), i, 0
		}
		size += n
	}
	return append(parts, wishes[from:])
}

// makeAll makes wishes come true, and tells of each: all in one call or none, if
// they fit and the gateway knows how; else in several calls.
func (a *app) makeAll(ctx context.Context, c calls, wishes []wish) error {
	err := a.makeParts(ctx, c, partsOf(wishes))
	if unknownTogether(err) {
		return a.makeEach(ctx, c, wishes)
	}
	return err
}

// makeParts makes each part of wishes come true in a call of its own.
func (a *app) makeParts(ctx context.Context, c calls, parts [][]wish) error {
	for i, part := range parts {
		effects, err := together(ctx, c, part, nil, false)
		if unknownTogether(err) && i == 0 {
			return err
		}
		if err != nil {
			return halted(err, i)
		}
		if i == 0 && len(parts) > 1 {
			fmt.Fprintf(a.stderr, "these are too many for one change: they are put in %d, each of which happens as a whole\n", len(parts))
		}
		a.tellAll(part, effects)
	}
	return nil
}

// tellAll says what became of wishes.
func (a *app) tellAll(wishes []wish, effects []meshgatev1.Effect) {
	for i, w := range wishes {
		fmt.Fprintln(a.stderr, w.done(effects[i]))
	}
}

// halted is err with what it leaves behind, after so many parts that were made.
func halted(err error, parts int) error {
	switch {
	case undecided(err):
		return fmt.Errorf("%w; whether it happened is not known: do it again, which changes nothing that is so already", err)
	case parts > 0:
		return fmt.Errorf("%w; what was told before is done, the rest is not", err)
	}
	return fmt.Errorf("%w; nothing is changed", err)
}

// makeEach makes wishes come true one after another, and tells of each.
func (a *app) makeEach(ctx context.Context, c calls, wishes []wish) error {
	if len(wishes) > 1 {
		fmt.Fprintln(a.stderr, "this gateway is older than this command and cannot change several objects at once: it is done one after another")
	}
	for _, w := range wishes {
		make := putObject
		if w.gone {
			make = removeObject
		}
		if err := make(ctx, c, w.object); err != nil {
			return fmt.Errorf("%s: %w; what was told before is done, the rest is not", w, err)
		}
		fmt.Fprintln(a.stderr, w.done(meshgatev1.Effect_EFFECT_UNSPECIFIED))
	}
	return nil
}

// wishesFor are objects of a kind as they are to be, those that others hold first.
func wishesFor(kind string, objects []proto.Message) []wish {
	var out []wish
	for _, m := range membersFirst(objects) {
		out = append(out, wish{kind: kind, object: m})
	}
	return out
}
