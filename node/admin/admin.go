// SPDX-License-Identifier: Apache-2.0

// Package admin changes the objects that people manage: roles, bindings,
// groups, network ACLs, routes and edges. Each change is checked against the
// latest state and made as a whole or not at all.
//
// Whether the caller may ask for it is decided before, by the gateway.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/meshgate/meshgate/node/mesh"
	"github.com/meshgate/meshgate/node/registry"
)

// Objects changes the objects of a registry. It is safe for concurrent use.
//
// Errors name the field that they are about. They wrap mesh.ErrInvalid for what
// can never be accepted, mesh.ErrExists for what somebody else has, and
// mesh.ErrPrecondition for a reference to what is not there, for the removal of
// what others depend on, and for a change that would lock everybody out.
type Objects struct {
	registry *registry.Registry
	replicas func() []netip.Addr
	log      *slog.Logger
}

// New makes Objects over r, which is required. The addresses of replicas, at
// which gateways keep the state together, are in no route; nil: there is one
// gateway only. A nil logger discards logs.
func New(r *registry.Registry, replicas func() []netip.Addr, logger *slog.Logger) (*Objects, error) {
	if r == nil {
		return nil, errors.New("admin: the registry is required")
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	if replicas == nil {
		replicas = func() []netip.Addr { return nil }
	}
	return &Objects{registry: r, replicas: replicas, log: logger.With("component", "admin")}, nil
}

// Change makes c happen, if permit allows it, and returns a snapshot that has it.
// A nil permit does. An object that is as c wants it already is no change.
func (o *Objects) Change(ctx context.Context, c mesh.Change, permit mesh.Permit) (*mesh.Snapshot, error) {
	var before uint64
	s, err := o.registry.Update(ctx, func(tx *registry.Tx) error {
		before = tx.Snapshot().Version
		if err := permitted(permit, tx.Snapshot(), nil); err != nil {
			return err
		}
		if err := check(tx.Snapshot(), c); err != nil {
			return err
		}
		if c.Route != nil && !c.Delete {
			if err := checkOutside(tx.Snapshot(), c.Route, o.replicas()); err != nil {
				return err
			}
		}
		d := newDraft(tx.Snapshot())
		d.apply(c)
		if err := permitted(permit, tx.Snapshot(), &d.Snapshot); err != nil {
			return err
		}
		return write(tx, c)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	if s.Version != before {
		o.log.Info("object changed", "change", c.String())
	}
	return s, nil
}

// permitted asks permit, which may be nil.
func permitted(permit mesh.Permit, before, after *mesh.Snapshot) error {
	if permit == nil {
		return nil
	}
	return permit(before, after)
}

// write writes c, which was checked.
func write(tx *registry.Tx, c mesh.Change) error {
	if c.Delete {
		remove(tx, c)
		return nil
	}
	switch {
	case c.Role != nil:
		return tx.PutRole(*c.Role)
	case c.Binding != nil:
		return tx.PutRoleBinding(*c.Binding)
	case c.Group != nil:
		return tx.PutGroup(*c.Group)
	case c.ACL != nil:
		return tx.PutACL(*c.ACL)
	case c.Route != nil:
		return tx.PutRoute(*c.Route)
	default:
		return tx.PutEdge(*c.Edge)
	}
}

func remove(tx *registry.Tx, c mesh.Change) {
	switch {
	case c.Role != nil:
		tx.DeleteRole(c.Role.Name)
	case c.Binding != nil:
		tx.DeleteRoleBinding(c.Binding.Name)
	case c.Group != nil:
		tx.DeleteGroup(c.Group.Name)
	case c.ACL != nil:
		tx.DeleteACL(c.ACL.Name)
	case c.Route != nil:
		tx.DeleteRoute(c.Route.Name)
	default:
		tx.DeleteEdge(c.Edge.Source, c.Edge.Target)
	}
}
