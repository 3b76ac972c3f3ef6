// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"github.com/go-chi/chi/v5"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meshgate/meshgate/gateway/api"
	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
)

const (
	// maxMessage bounds a message from a client, after decompression.
	maxMessage = 1 << 20
	// minCompress is the size from which answers are compressed, if the client
	// asks for it.
	minCompress = 1 << 10
)

// services builds the handler of every RPC service and completes the rules.
func (g *Gateway) services() (http.Handler, error) {
	opts := []connect.HandlerOption{
		connect.WithConditionalHandlerOptions(bounds),
		connect.WithCompressMinBytes(minCompress),
		connect.WithRequestGate(g.gate),
		connect.WithInterceptors(interceptor{g}),
		connect.WithRecover(g.recovered),
	}
	_, early := g.cfg.Node.(earlyNode)
	presence, _ := g.cfg.Node.(api.RemotePresence) // who can ask others does
	remoteRelays, _ := g.cfg.Node.(api.RemoteRelays)
	services, err := api.Services(api.Config{
		State: g.cfg.Node, Members: g.cfg.Node, Objects: g.cfg.Node, Keys: g.cfg.Node,
		Links: g.cfg.Node, Remote: g.cfg.Node, Ways: g.cfg.Node, RemoteWays: g.cfg.Node, Exits: g.cfg.Exits, Signaling: g.cfg.Signaling, Presence: presence, Cluster: g.cfg.Cluster, Replicas: g.cfg.Replicas, Early: early,
		Store: g.cfg.Store, Tokens: g.cfg.Tokens, Pairs: g.cfg.Node, RelayServers: g.cfg.RelayServers, Trust: g.cfg.Trust, Relays: g.cfg.Relays, RemoteRelays: remoteRelays, Build: g.cfg.Build,
	}, opts...)
	if err != nil {
		return nil, err
	}
	r := chi.NewRouter()
	names := make([]string, 0, len(services))
	for _, s := range services {
		r.Handle(s.Path+"*", s.Handler)
		names = append(names, s.Name)
		if !s.Unimplemented {
			continue
		}
		procedures, err := proceduresOf(s.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range procedures {
			g.rules[p] = rule{access: identified}
		}
	}
	path, h := g.healthHandler(names, opts)
	r.Handle(path+"*", h)
	reflector := grpcreflect.NewStaticReflector(names...)
	path, h = grpcreflect.NewHandlerV1(reflector, opts...)
	r.Handle(path+"*", h)
	path, h = grpcreflect.NewHandlerV1Alpha(reflector, opts...)
	r.Handle(path+"*", h)
	r.NotFound(g.notFound)
	return g.measured(r), nil
}

// bounds are what a procedure takes of a message from a client: its bytes, packed
// or not, its fields, and which of them.
func bounds(spec connect.Spec) []connect.HandlerOption {
	service, size, fields := messageBounds(spec.Procedure)
	return []connect.HandlerOption{connect.WithReadMaxBytes(size), withBoundedGzip(size), withCodecs(fields, changesNothing(service))}
}

// messageBounds are the service of a procedure, and what its messages may be: their
// size in bytes, packed or not, and their fields.
func messageBounds(procedure string) (service string, size, fields int) {
	service, _, _ = strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	size, fields = maxMessage, maxFields
	switch service {
	case meshgatev1connect.StoreName:
		size, fields = api.MaxStoreMessage, api.MaxStoreFields
	case meshgatev1connect.ObjectsName:
		size, fields = api.MaxObjectsMessage, api.MaxObjectsFields
	case grpchealth.HealthV1ServiceName:
		size = maxHealthMessage // strangers may call it, and the intake lets it pass
	}
	return service, size, fields
}

// proceduresOf lists the procedures of a service by its full name.
func proceduresOf(service string) ([]string, error) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, fmt.Errorf("describe service %s: %w", service, err)
	}
	methods := d.(protoreflect.ServiceDescriptor).Methods()
	procedures := make([]string, methods.Len())
	for i := range procedures {
		procedures[i] = "/" + service + "/" + string(methods.Get(i).Name())
	}
	return procedures, nil
}

// publicHandler serves everybody.
func (g *Gateway) publicHandler(draining context.Context) http.Handler {
	r := chi.NewRouter()
	r.Use(begin(draining, false, g.cfg.Access.TrustedProxies), g.recoverHTTP, g.anonymous, securityHeaders, g.knownHost, g.corsHandler(), g.crossOrigin(), g.webSockets)
	g.healthRoutes(r, false)
	if g.waits != nil && g.cfg.Console == nil {
		r.Get("/*", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, errEarly.Error(), http.StatusServiceUnavailable)
		})
	}
	if g.cfg.Console != nil {
		console := newConsole(g.cfg.Console)
		r.Get("/*", console.ServeHTTP)
		r.Head("/*", console.ServeHTTP)
	}
	r.Post("/*", g.rpc.ServeHTTP)
	r.NotFound(g.notFound)
	return r
}

// meshHandler serves members.
func (g *Gateway) meshHandler(draining context.Context) http.Handler {
	r := chi.NewRouter()
	r.Use(begin(draining, true, nil), g.recoverHTTP, securityHeaders, g.noBrowsers)
	g.healthRoutes(r, false)
	r.Post("/*", g.rpc.ServeHTTP)
	r.NotFound(g.notFound)
	return r
}

// localHandler serves those who may open the node's socket on this host.
func (g *Gateway) localHandler(draining context.Context) http.Handler {
	r := chi.NewRouter()
	r.Use(begin(draining, false, nil), fromHere, g.recoverHTTP, securityHeaders, g.noBrowsers)
	g.healthRoutes(r, false)
	r.Post("/*", g.rpc.ServeHTTP)
	r.NotFound(g.notFound)
	return r
}

// fromHere marks requests of this host's operator.
func fromHere(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requestFrom(r.Context()).local = true
		next.ServeHTTP(w, r)
	})
}

// metricsHandler serves operators.
func (g *Gateway) metricsHandler(draining context.Context) http.Handler {
	r := chi.NewRouter()
	r.Use(begin(draining, false, nil), g.recoverHTTP, securityHeaders, g.noBrowsers)
	g.healthRoutes(r, true)
	r.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(g.cfg.Gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return r
}

// notFound answers for paths that nothing is served on, in the words of the
// caller's protocol.
func (g *Gateway) notFound(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && g.errors.IsSupported(r) {
		g.writeError(w, r, connect.NewError(connect.CodeUnimplemented,
			errors.New("nothing is served under this name; check the address, and that client and gateway speak the same version of the API")))
		return
	}
	http.NotFound(w, r)
}

// writeError answers an RPC request outside of its handler.
func (g *Gateway) writeError(w http.ResponseWriter, r *http.Request, err *connect.Error) {
	if err := g.errors.Write(w, r, err); err != nil {
		g.log.Debug("answer not sent", "err", err, "request_id", requestFrom(r.Context()).id)
	}
}

// recoverHTTP answers for handlers outside of an RPC that panicked.
func (g *Gateway) recoverHTTP(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if !aborted(v) {
				_ = g.recovered(r.Context(), connect.Spec{Procedure: r.URL.Path}, nil, v)
			}
			panic(http.ErrAbortHandler) // what was answered so far is not to be taken for an answer
		}()
		next.ServeHTTP(w, r)
	})
}

// aborted reports whether a handler panicked on purpose, to cut off its answer.
func aborted(v any) bool {
	err, ok := v.(error)
	return ok && errors.Is(err, http.ErrAbortHandler)
}
