// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"connectrpc.com/connect"
	connectcors "connectrpc.com/cors"
	"github.com/rs/cors"
)

// contentPolicy lets the console load what it brings itself and call this
// gateway, and nothing else.
const contentPolicy = "default-src 'self'; connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; " +
	"form-action 'none'; frame-ancestors 'none'"

// securityHeaders are on every answer.
func securityHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		next.ServeHTTP(w, r)
	})
}

// knownHost serves requests for Access.Hosts only.
func (g *Gateway) knownHost(next http.Handler) http.Handler {
	if len(g.cfg.Access.Hosts) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.ContainsFunc(g.cfg.Access.Hosts, func(h string) bool { return strings.EqualFold(h, hostname(r.Host)) }) {
			http.Error(w, "this gateway is not served under that host name; use one of: "+
				strings.Join(g.cfg.Access.Hosts, ", "), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostname is a Host header without port and brackets.
func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// corsHandler lets pages of Access.Origins read answers. Credentials in the
// sense of CORS (cookies) are never asked for: tokens travel in a header.
func (g *Gateway) corsHandler() func(http.Handler) http.Handler {
	if len(g.cfg.Access.Origins) == 0 {
		return func(next http.Handler) http.Handler { return next }
	}
	return cors.New(cors.Options{
		AllowedOrigins: g.cfg.Access.Origins,
		AllowedMethods: connectcors.AllowedMethods(),
		AllowedHeaders: append(connectcors.AllowedHeaders(), headerAuthorization, headerUsername, headerPassword),
		ExposedHeaders: append(connectcors.ExposedHeaders(), headerRequestID),
		MaxAge:         7200, // seconds; browsers keep an answer no longer
	}).Handler
}

// crossOrigin refuses requests that a page of another origin makes a browser
// send, except for Access.Origins.
func (g *Gateway) crossOrigin() func(http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	for _, o := range g.cfg.Access.Origins {
		if err := protection.AddTrustedOrigin(o); err != nil {
			g.log.Warn("origin not trusted", "err", err) // Validate lets none through that could come here
		}
	}
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.denyBrowser(w, r, "pages of this origin may not call the gateway; its operator can allow the origin")
	}))
	return protection.Handler
}

// noBrowsers refuses what a browser sends for a page. On a mesh address the
// address is the credential, so that any page in a member's browser would
// speak for the member.
func (g *Gateway) noBrowsers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
			g.denyBrowser(w, r, "this address is not for browsers; use the public address of the gateway")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Gateway) denyBrowser(w http.ResponseWriter, r *http.Request, why string) {
	g.log.Debug("page refused", "addr", r.RemoteAddr, "origin", fmt.Sprintf("%.100q", r.Header.Get("Origin")))
	if r.Method == http.MethodPost && g.errors.IsSupported(r) {
		g.writeError(w, r, connect.NewError(connect.CodePermissionDenied, errors.New(why)))
		return
	}
	http.Error(w, why, http.StatusForbidden)
}

// originAllowed decides on the origin of a WebSocket: browsers do not apply
// CORS to them. The gateway's own pages and Access.Origins may; a client that
// names no origin is no browser; it needs credentials like everybody.
func (g *Gateway) originAllowed(r *http.Request) bool {
	values := r.Header["Origin"]
	switch {
	case len(values) == 0:
		return true
	case len(values) > 1:
		return false
	}
	if slices.Contains(g.cfg.Access.Origins, values[0]) {
		return true
	}
	u, err := url.Parse(values[0])
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}
