// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"github.com/go-chi/chi/v5"

	"github.com/meshgate/meshgate/gateway/api"
)

// maxHealthMessage is what a message of the health service may be, in bytes and
// unpacked: the name of a service.
const maxHealthMessage = 1 << 10

// ready is nil while new work should be sent here.
func (g *Gateway) ready(ctx context.Context) error {
	if q := requestFrom(ctx); q != nil && q.draining() || g.cfg.Draining != nil && g.cfg.Draining() {
		return api.ErrClosing
	}
	return g.cfg.Node.Healthy()
}

// healthRoutes adds the three probes: /livez is about the process, /healthz about
// whether it serves, and /readyz about sending work here, which ends before that
// does. Only operators are told why.
func (g *Gateway) healthRoutes(r chi.Router, reasons bool) {
	r.Get("/livez", func(w http.ResponseWriter, _ *http.Request) { writeProbe(w, nil, false) })
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) { writeProbe(w, g.cfg.Node.Healthy(), reasons) })
	r.Get("/readyz", func(w http.ResponseWriter, r *http.Request) { writeProbe(w, g.ready(r.Context()), reasons) })
}

func writeProbe(w http.ResponseWriter, err error, reason bool) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	text := "ok"
	if err != nil {
		text = "not ready"
		if reason {
			text += ": " + err.Error()
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = w.Write([]byte(text + "\n")) // a prober that left needs no answer
}

// healthHandler is the gRPC health service for services, and for "" as a whole.
func (g *Gateway) healthHandler(services []string, opts []connect.HandlerOption) (string, http.Handler) {
	return grpchealth.NewHandler(checker{gateway: g, services: services}, opts...)
}

type checker struct {
	gateway  *Gateway
	services []string
}

// Check implements grpchealth.Checker.
func (c checker) Check(ctx context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if req.Service != "" && !slices.Contains(c.services, req.Service) {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such service; ask with an empty name for the gateway as a whole"))
	}
	if c.gateway.ready(ctx) != nil {
		return &grpchealth.CheckResponse{Status: grpchealth.StatusNotServing}, nil
	}
	return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
}
