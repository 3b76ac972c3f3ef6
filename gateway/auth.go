// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"

	"github.com/meshgate/meshgate/node/mesh"
)

// ErrOtherKind says that an Authenticator does not judge credentials of this
// kind; the next one is asked.
var ErrOtherKind = errors.New("credentials of another kind")

// Authenticator turns credentials into an identity. It must be safe for
// concurrent use.
type Authenticator interface {
	// Authenticate returns who holds c. The error is ErrOtherKind, or wraps
	// mesh.ErrUnauthenticated when c is wrong, mesh.ErrNotFound when it proves
	// who holds it and the mesh has no such member, or mesh.ErrExhausted when it
	// was not even looked at because of failures before; anything else is a
	// fault of the gateway. The text of an error must not help to guess.
	Authenticate(ctx context.Context, c Credentials) (Identity, error)
	// Generation grows when an Identity that was given out may no longer stand.
	// It is asked every two seconds.
	Generation() uint64
}

// Identity is what credentials have shown.
type Identity struct {
	// ID is the name of who holds the credentials.
	ID string
	// Keyed is true when a node has shown its key: ID is its id.
	Keyed bool
	// Stands reports whether they are good still; calls and sessions that last
	// ask again. It keeps no secret, and a wrong password of somebody else does
	// not change its answer. Nil: they are good as long as the process runs.
	Stands func() bool
}

// Credentials are what a caller showed: a token, or a name and a password.
type Credentials struct {
	// Token is set for "authorization: Bearer TOKEN".
	Token string
	// Username and Password are set for the two x-webmesh-basic-auth headers.
	Username, Password string
	// From is the caller's address.
	From netip.Addr
}

// LogValue keeps the secrets out of logs.
func (c Credentials) LogValue() slog.Value { return slog.StringValue("[credentials]") }

// String keeps the secrets out of texts.
func (c Credentials) String() string { return "[credentials]" }

// GoString keeps the secrets out of %#v.
func (c Credentials) GoString() string { return c.String() }

const (
	headerAuthorization = "Authorization"
	headerUsername      = "X-Webmesh-Basic-Auth-Username"
	headerPassword      = "X-Webmesh-Basic-Auth-Password"
	maxCredential       = 4096 // bytes; longer ones are not looked at
)

// errNoCredentials is the answer to strangers.
var errNoCredentials = fmt.Errorf(`%w: no credentials: send "authorization: Bearer TOKEN"`, mesh.ErrUnauthenticated)

// parseCredentials reads the one set of credentials in h. It returns
// errNoCredentials when there is none, and refuses what could be read in two ways.
func parseCredentials(h http.Header) (Credentials, error) {
	var c Credentials
	bearer, hasBearer, err := single(h, headerAuthorization)
	if err != nil {
		return c, err
	}
	username, hasUsername, err := single(h, headerUsername)
	if err != nil {
		return c, err
	}
	password, hasPassword, err := single(h, headerPassword)
	if err != nil {
		return c, err
	}
	switch {
	case hasBearer && (hasUsername || hasPassword):
		return c, malformed("both a token and a password; send one of them")
	case hasUsername != hasPassword:
		return c, malformed("a user name and a password go together")
	case hasUsername:
		return Credentials{Username: username, Password: password}, nil
	case !hasBearer:
		return c, errNoCredentials
	}
	scheme, token, ok := strings.Cut(bearer, " ")
	if !ok || !strings.EqualFold(scheme, "bearer") || token == "" || strings.ContainsAny(token, " ,") {
		return c, malformed(`write "authorization: Bearer TOKEN"; other schemes are not accepted`)
	}
	return Credentials{Token: token}, nil
}

// single returns the value of header key, which may be there once.
func single(h http.Header, key string) (value string, ok bool, err error) {
	values := h[key]
	switch {
	case len(values) == 0:
		return "", false, nil
	case len(values) > 1:
		return "", false, malformed("header " + strings.ToLower(key) + " is there more than once")
	case values[0] == "" || len(values[0]) > maxCredential:
		return "", false, malformed("header " + strings.ToLower(key) + " is empty or too long")
	}
	return values[0], true, nil
}

// malformedError is a set of credentials that is not looked at.
type malformedError string

func malformed(text string) error { return malformedError(text) }

// Error implements error.
func (e malformedError) Error() string {
	return "credentials are not well formed: " + string(e)
}

// Unwrap makes it a failure to authenticate.
func (e malformedError) Unwrap() error { return mesh.ErrUnauthenticated }

// authenticate returns the identity behind the credentials in h, and counts
// failures by reason.
func (g *Gateway) authenticate(ctx context.Context, h http.Header, from netip.Addr) (Identity, error) {
	c, err := parseCredentials(h)
	if err != nil {
		reason := reasonMalformed
		if errors.Is(err, errNoCredentials) {
			reason = reasonNone
		}
		return Identity{}, g.authFailure(reason, err)
	}
	c.From = from
	for _, a := range g.cfg.Access.Authenticators {
		id, err := a.Authenticate(ctx, c)
		switch {
		case errors.Is(err, ErrOtherKind):
			continue
		case errors.Is(err, mesh.ErrUnauthenticated), errors.Is(err, mesh.ErrNotFound):
			return Identity{}, g.authFailure(reasonRefused, err)
		case errors.Is(err, mesh.ErrExhausted):
			return Identity{}, g.authFailure(reasonLimited, err)
		case err != nil:
			return Identity{}, g.authFailure(reasonFailed, fmt.Errorf("authenticate: %w", err))
		case mesh.ValidName(id.ID) != nil:
			return Identity{}, g.authFailure(reasonFailed, fmt.Errorf("authenticator gave the id %q, which is no name", id.ID))
		}
		return id, nil
	}
	return Identity{}, g.authFailure(reasonRefused, fmt.Errorf("%w: this gateway does not take credentials of this kind", mesh.ErrUnauthenticated))
}

func (g *Gateway) authFailure(reason string, err error) error {
	g.metrics.authFailures.WithLabelValues(reason).Inc()
	return err
}
