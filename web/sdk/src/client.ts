// SPDX-License-Identifier: Apache-2.0

import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { MeshgateError } from "./error.js";
import { typedEventTarget } from "./events.js";
import { Mesh } from "./gen/v1/mesh_pb.js";
import { type MeshNode, Node, type Status } from "./gen/v1/node_pb.js";
import type { WatchMeshResponse } from "./gen/meshgate/v1/watch_pb.js";
import { createMeshTransport } from "./transport.js";
import type {
  CallOptions,
  ConnectOptions,
  MeshClient,
  MeshClientEvents,
  MeshClientOptions,
  MeshConnection,
  MeshDatagrams,
  MeshRequestInit,
} from "./types.js";

/** Makes a client of the gateway at `baseUrl`. Nothing is sent before the first call. */
export function createMeshClient(options: MeshClientOptions): MeshClient {
  return new GatewayClient(options);
}

const ClientEventTarget = typedEventTarget<MeshClientEvents>();

class GatewayClient extends ClientEventTarget implements MeshClient {
  readonly transport: Transport;

  constructor(options: MeshClientOptions) {
    super();
    this.transport = options.transport ?? createMeshTransport(options);
  }

  connect(_options: ConnectOptions): Promise<MeshConnection> {
    return Promise.reject(new MeshgateError("unimplemented", "not yet"));
  }

  connectUdp(_options: ConnectOptions): Promise<MeshDatagrams> {
    return Promise.reject(new MeshgateError("unimplemented", "not yet"));
  }

  fetch(_input: string | URL | Request, _init?: MeshRequestInit): Promise<Response> {
    return Promise.reject(new MeshgateError("unimplemented", "not yet"));
  }

  async nodes(options: CallOptions = {}): Promise<MeshNode[]> {
    return (await this.service(Mesh).listNodes({}, options)).nodes;
  }

  async status(nodeId = "", options: CallOptions = {}): Promise<Status> {
    return this.service(Node).getStatus({ id: nodeId }, options);
  }

  async *watch(_options: CallOptions = {}): AsyncGenerator<WatchMeshResponse> {
    throw new MeshgateError("unimplemented", "not yet");
  }

  service<T extends DescService>(service: T): Client<T> {
    return createClient(service, this.transport);
  }

  async close(): Promise<void> {}

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
