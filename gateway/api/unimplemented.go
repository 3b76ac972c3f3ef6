// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"

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
	with := func(message string) []connect.HandlerOption {
		return append(opts[:len(opts):len(opts)], connect.WithInterceptors(refusal(message)))
	}
	services := []Service{
		late(v1connect.AppDaemonName, v1connect.NewAppDaemonHandler, with(daemon))(v1connect.UnimplementedAppDaemonHandler{}),
		late(v1connect.PluginName, v1connect.NewPluginHandler, with(plugin))(v1connect.UnimplementedPluginHandler{}),
		late(v1connect.AuthPluginName, v1connect.NewAuthPluginHandler, with(plugin))(v1connect.UnimplementedAuthPluginHandler{}),
		late(v1connect.WatchPluginName, v1connect.NewWatchPluginHandler, with(plugin))(v1connect.UnimplementedWatchPluginHandler{}),
		late(v1connect.IPAMPluginName, v1connect.NewIPAMPluginHandler, with(plugin))(v1connect.UnimplementedIPAMPluginHandler{}),
		late(v1connect.StorageQuerierPluginName, v1connect.NewStorageQuerierPluginHandler, with(plugin))(v1connect.UnimplementedStorageQuerierPluginHandler{}),
		late(v1connect.StorageProviderPluginName, v1connect.NewStorageProviderPluginHandler, with(plugin))(v1connect.UnimplementedStorageProviderPluginHandler{}),
	}
	for i := range services {
		services[i].Unimplemented = true
	}
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
