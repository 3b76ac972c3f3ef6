// SPDX-License-Identifier: Apache-2.0

package remote

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/node/store"
	meshgatev1 "github.com/meshgate/meshgate/proto/meshgate/v1"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

// finalError is the answer of the state: no other gateway has another one.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// refusedError is a gateway's word on who calls. Another one may know better: it
// may have learned of the caller's rights before.
type refusedError struct{ error }

func (e refusedError) Unwrap() error { return e.error }

// errBehind says that a gateway lacks changes that were seen.
var errBehind = errors.New("gateway lags behind what was seen")

// try makes a call with one gateway after the other, until one gives an answer,
// all refuse, or ctx ends. What call returns was judged.
func (s *Store) try(ctx context.Context, call func(context.Context, meshgatev1connect.StoreClient) error) error {
	refusals := map[*member]error{}
	var last error
	for {
		m, err := s.members.wait(ctx, refusals)
		if err != nil {
			return s.ended(ctx, err, last)
		}
		err = call(ctx, m.Client)
		var final finalError
		var refused refusedError
		switch {
		case err == nil:
			s.members.worked(m, refusals)
			return nil
		case errors.As(err, &final) && connect.IsWireError(err):
			s.members.worked(m, refusals)
			return final.error
		case errors.As(err, &final) && ctx.Err() == nil:
			s.members.failed(m, err)
			return final.error
		case errors.As(err, &final): // and the call was given up here
			return fmt.Errorf("%w: %w", endOf(ctx, ctx.Err()), final.error)
		case ctx.Err() != nil:
			return s.ended(ctx, ctx.Err(), err)
		case errors.As(err, &refused):
			refusals[m] = refused.error
			s.metrics.failed(reasonRefused)
		default:
			s.members.failed(m, err)
		}
		last = fmt.Errorf("gateway %s: %w", m.Name, err)
	}
}

// endOf is why a call ended that met err: the store was closed, the patience is
// over, or else err.
func endOf(ctx context.Context, err error) error {
	switch cause := context.Cause(ctx); {
	case errors.Is(err, ErrRefused):
		return err
	case errors.Is(cause, store.ErrClosed):
		return store.ErrClosed
	case errors.Is(cause, ErrUnreachable):
		return ErrUnreachable
	}
	return err
}

// ended is the error of a call that got no answer. last is what went wrong before.
func (s *Store) ended(ctx context.Context, err, last error) error {
	err = endOf(ctx, err)
	if last == nil && errors.Is(err, ErrUnreachable) {
		last = s.members.why()
	}
	if last == nil {
		return err
	}
	var other *store.NotLeaderError
	if errors.Is(err, ErrUnreachable) && errors.As(last, &other) {
		return fmt.Errorf("%w: %w", err, last)
	}
	return fmt.Errorf("%w (%v)", err, last) // of what went wrong before only the text counts
}

// judgeRead tells what an error of a read means: finalError, refusedError, or
// anything else for another try.
func judgeRead(err error) error {
	fault := faultOf(err)
	switch fault.GetKind() {
	case meshgatev1.StoreFault_KIND_NOT_FOUND, meshgatev1.StoreFault_KIND_INVALID, meshgatev1.StoreFault_KIND_COMPACTED:
		return finalError{contractError(fault, err)}
	case meshgatev1.StoreFault_KIND_BEHIND:
		return fmt.Errorf("%w: %w", errBehind, err)
	default:
	}
	if refusal(err) {
		return refusedError{err}
	}
	return err
}

// judgeApply tells what an error of a change means. Only what surely was not
// taken may be tried again.
func judgeApply(err error) error {
	fault := faultOf(err)
	switch fault.GetKind() {
	case meshgatev1.StoreFault_KIND_CONFLICT, meshgatev1.StoreFault_KIND_INVALID, meshgatev1.StoreFault_KIND_FULL,
		meshgatev1.StoreFault_KIND_UNCERTAIN:
		return finalError{contractError(fault, err)}
	case meshgatev1.StoreFault_KIND_NOT_LEADER, meshgatev1.StoreFault_KIND_CLOSED:
		return contractError(fault, err)
	default:
	}
	switch {
	case refusal(err) && connect.IsWireError(err): // and not of something on the way
		return refusedError{err}
	case connect.IsWireError(err) && connect.CodeOf(err) == connect.CodeInvalidArgument:
		return finalError{fmt.Errorf("%w: %w", store.ErrInvalid, err)}
	case connect.IsWireError(err) && connect.CodeOf(err) == connect.CodeResourceExhausted:
		return err // more changes per second than one caller may make
	case notSent(err):
		return err
	}
	return finalError{fmt.Errorf("%w: %w", store.ErrUncertain, err)}
}

// contractError is the error of the store's contract behind a fault, with the
// gateway's words.
func contractError(fault *meshgatev1.StoreFault, err error) error {
	known := store.FaultFromProto(fault)
	if known == nil {
		return err
	}
	return fmt.Errorf("%w: gateway answered: %w", known, err)
}

// refusal reports whether err is a word on the caller, given before the state was
// asked.
func refusal(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnimplemented:
		return true
	default:
		return false
	}
}

// notSent reports whether err surely came before anything was sent: there was no
// connection, or it was with somebody else.
func notSent(err error) bool {
	var op *net.OpError
	var name *net.DNSError
	var certificate *tls.CertificateVerificationError
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &name) || errors.As(err, &certificate)
}

// faultOf is the fault among an error's details; nil when there is none.
func faultOf(err error) *meshgatev1.StoreFault {
	var e *connect.Error
	if !errors.As(err, &e) {
		return nil
	}
	for _, d := range e.Details() {
		m, err := d.Value()
		if err != nil {
			continue // a detail of a later version
		}
		if fault, ok := m.(*meshgatev1.StoreFault); ok {
			return fault
		}
	}
	return nil
}
