// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "github.com/meshgate/meshgate/proto/v1"
)

const (
	// regroupTries bounds how often a group is read again that somebody changed
	// after it was read. Each time somebody else got through.
	regroupTries = 24
	// regroupPause is the longest pause after the first of them; it grows with each.
	regroupPause = 10 * time.Millisecond
)

// regroup adds the subjects of m to the group of its name as it is, or takes them
// out of it. What others do to the group meanwhile stays. A group that is not there
// is made by adding to it.
func (a *app) regroup(ctx context.Context, c calls, m *v1.Group, add bool) error {
	var err error
	for try := range regroupTries {
		var have, want *v1.Group
		if have, err = currentGroup(ctx, c, m.GetName(), add); err != nil {
			return err
		}
		if want, err = regrouped(have, m, add); err != nil {
			return err
		}
		_, err = together(ctx, c, []wish{{kind: "groups", object: want}}, []wish{{kind: "groups", object: have, gone: len(have.GetSubjects()) == 0}}, false)
		if unknownTogether(err) {
			fmt.Fprintf(a.stderr, "this gateway is older than this command: what somebody else does to the group %s in this moment is lost\n", m.GetName())
			return putObject(ctx, c, want)
		}
		if connect.CodeOf(err) != connect.CodeAborted {
			return err
		}
		select {
		case <-time.After(rand.N(time.Duration(try+1) * regroupPause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return fmt.Errorf("others have changed the group %d times meanwhile; try again: %w", regroupTries, err)
}

// currentGroup is a group as it is: without subjects when it is not there, which is
// an error unless it may be made.
func currentGroup(ctx context.Context, c calls, name string, mayMake bool) (*v1.Group, error) {
	answer, err := c.Admin().GetGroup(ctx, ask(c, &v1.Group{Name: name}))
	switch {
	case mayMake && connect.CodeOf(err) == connect.CodeNotFound:
		return &v1.Group{Name: name}, nil
	case err != nil:
		return nil, err
	}
	return answer.Msg, nil
}

// regrouped is have with the subjects of m, or without them.
func regrouped(have, m *v1.Group, add bool) (*v1.Group, error) {
	want := proto.CloneOf(have)
	for _, x := range m.GetSubjects() {
		is := func(s *v1.Subject) bool { return proto.Equal(s, x) }
		there := slices.ContainsFunc(want.GetSubjects(), is)
		switch {
		case add && !there:
			want.Subjects = append(want.Subjects, x)
		case !add && !there:
			return nil, fmt.Errorf("%s is not in the group; it holds %s", subjectsText([]*v1.Subject{x}), subjectsText(want.GetSubjects()))
		case !add:
			want.Subjects = slices.DeleteFunc(want.Subjects, is)
		}
	}
	return want, nil
}
