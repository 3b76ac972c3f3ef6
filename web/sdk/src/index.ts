// SPDX-License-Identifier: Apache-2.0

/**
 * Reach a private WireGuard mesh from a browser.
 *
 * The first half of the exports is what applications use; the second half is
 * for those who call the API of the gateway themselves.
 *
 * @module
 */

// For applications.
export { createMeshClient } from "./client.js";
export { type MeshgateCode, MeshgateError } from "./error.js";
export type { TypedEventTarget } from "./events.js";
export { type Allocation, Turn } from "./gen/meshgate/v1/turn_pb.js";
export type { Link, WatchMeshResponse } from "./gen/meshgate/v1/watch_pb.js";
export { Watch } from "./gen/meshgate/v1/watch_pb.js";
export { Admin } from "./gen/v1/admin_pb.js";
export type { Service } from "./gen/v1/extensions_pb.js";
export {
  ConnectProtocol,
  type JoinRequest,
  type JoinResponse,
  Membership,
  type WireGuardPeer,
} from "./gen/v1/members_pb.js";
export type { MeshEdge } from "./gen/v1/mesh_pb.js";
export { Mesh, type MeshGraph } from "./gen/v1/mesh_pb.js";
export { ACLAction, type NetworkACL, type Route } from "./gen/v1/network_acls_pb.js";
export type { FeaturePort, InterfaceMetrics, MeshNode, PeerMetrics, Status } from "./gen/v1/node_pb.js";
export { ClusterStatus, EdgeAttribute, Feature, Node } from "./gen/v1/node_pb.js";
export {
  type Group,
  type Role,
  type RoleBinding,
  type Rule,
  RuleResource,
  RuleVerb,
  type Subject,
  SubjectType,
} from "./gen/v1/rbac_pb.js";
export { WebRTC } from "./gen/v1/webrtc_pb.js";
// Advanced: the whole API of the gateway, through MeshClient.service or a transport of one's own.
export { createMeshTransport, type MeshTransportOptions } from "./transport.js";
export type {
  CallOptions,
  Connection,
  ConnectOptions,
  ConnectStep,
  MeshClient,
  MeshClientEvents,
  MeshClientOptions,
  MeshConnection,
  MeshDatagrams,
  MeshRequestInit,
  MeshState,
  Path,
  PathEndpoint,
  StateDetail,
} from "./types.js";
export { createWebSocketClient, type WebSocketClientOptions } from "./websocket.js";
