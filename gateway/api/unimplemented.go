// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// unimplemented makes the services of the v1 API that a gateway does not
// serve. They are mounted all the same, so that a caller learns what to use.
func unimplemented(opts []connect.HandlerOption) []Service {
	const (
		daemon = "v1.AppDaemon belongs to a local daemon, not to a gateway: use meshgate join on the machine itself"
		plugin = "the plugin services are called by a gateway, never served by one"
	)
	with := func(message string) connect.HandlerOption {
		return connect.WithHandlerOptions(append(opts[:len(opts):len(opts)], connect.WithInterceptors(refusal(message)))...)
	}
	var services []Service
	add := func(path string, h http.Handler) {
		s := newService(path, h)
		s.Unimplemented = true
		services = append(services, s)
	}
	add(v1connect.NewAppDaemonHandler(v1connect.UnimplementedAppDaemonHandler{}, with(daemon)))
	add(v1connect.NewPluginHandler(v1connect.UnimplementedPluginHandler{}, with(plugin)))
	add(v1connect.NewAuthPluginHandler(v1connect.UnimplementedAuthPluginHandler{}, with(plugin)))
	add(v1connect.NewWatchPluginHandler(v1connect.UnimplementedWatchPluginHandler{}, with(plugin)))
	add(v1connect.NewIPAMPluginHandler(v1connect.UnimplementedIPAMPluginHandler{}, with(plugin)))
	add(v1connect.NewStorageQuerierPluginHandler(v1connect.UnimplementedStorageQuerierPluginHandler{}, with(plugin)))
	add(v1connect.NewStorageProviderPluginHandler(v1connect.UnimplementedStorageProviderPluginHandler{}, with(plugin)))
	return services
}

// refusal is an interceptor that answers every call with Unimplemented and
// itself as the message.
type refusal string

var _ connect.Interceptor = refusal("")

// Error implements error.
func (r refusal) Error() string { return string(r) }

// WrapUnary implements connect.Interceptor.
func (r refusal) WrapUnary(connect.UnaryFunc) connect.UnaryFunc {
	return func(context.Context, connect.AnyRequest) (connect.AnyResponse, error) {
		return nil, connect.NewError(connect.CodeUnimplemented, r)
	}
}

// WrapStreamingClient implements connect.Interceptor; handlers have no client.
func (r refusal) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (r refusal) WrapStreamingHandler(connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(context.Context, connect.StreamingHandlerConn) error {
		return connect.NewError(connect.CodeUnimplemented, r)
	}
}
