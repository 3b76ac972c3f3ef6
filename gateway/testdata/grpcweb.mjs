// SPDX-License-Identifier: Apache-2.0

// The stock @improbable-eng/grpc-web client against a gateway: one JSON object
// on stdout tells how each kind of call went. Arguments: base URL, token.

import grpcWeb from "@improbable-eng/grpc-web";
import nodeTransport from "@improbable-eng/grpc-web-node-http-transport";
import protobuf from "google-protobuf";

const { grpc } = grpcWeb;
const { NodeHttpTransport } = nodeTransport;

const [base, token] = process.argv.slice(2);

// message builds just enough of a generated class: strings by field number.
function message(fields) {
  return class {
    constructor(values = {}) {
      Object.assign(this, values);
    }
    static deserializeBinary(bytes) {
      const out = new this();
      const reader = new protobuf.BinaryReader(bytes);
      while (reader.nextField()) {
        const name = fields[reader.getFieldNumber()];
        if (name) out[name] = reader.readString();
        else reader.skipField();
      }
      return out;
    }
    serializeBinary() {
      const writer = new protobuf.BinaryWriter();
      for (const [number, name] of Object.entries(fields)) {
        if (this[name]) writer.writeString(Number(number), this[name]);
      }
      return writer.getResultBuffer();
    }
    toObject() {
      return { ...this };
    }
  };
}

const Id = message({ 1: "id" });
const Empty = message({});
const Watched = message({ 2: "gateway" });
const StartDataChannelRequest = message({ 1: "nodeId", 6: "candidate" });
const DataChannelOffer = message({ 1: "offer", 3: "candidate" });

function method(service, name, requestType, responseType, requestStream, responseStream) {
  return {
    methodName: name,
    service: { serviceName: service },
    requestType,
    responseType,
    requestStream,
    responseStream,
  };
}

// call makes one call: of a bidirectional one it sends each request after the
// answer to the one before.
function call(definition, transport, requests, metadata = { authorization: `Bearer ${token}` }) {
  return new Promise((resolve) => {
    const got = [];
    const rest = [...requests];
    const client = grpc.client(definition, { host: base, transport });
    const next = () => {
      if (rest.length > 0) client.send(new definition.requestType(rest.shift()));
      else client.finishSend();
    };
    client.onMessage((m) => {
      got.push(m.toObject());
      if (definition.requestStream) next();
    });
    client.onEnd((code, text) => resolve({ code, text, got }));
    client.start(new grpc.Metadata(metadata));
    next();
    if (!definition.requestStream) client.finishSend();
  });
}

// first makes a call that has no end, and leaves it after the first answer.
function first(definition, transport) {
  return new Promise((resolve) => {
    const client = grpc.client(definition, { host: base, transport });
    client.onMessage((m) => {
      client.close();
      resolve({ code: 0, got: [m.toObject()] });
    });
    client.onEnd((code, text) => resolve({ code, text, got: [] }));
    client.start(new grpc.Metadata({ authorization: `Bearer ${token}` }));
    client.send(new definition.requestType());
    client.finishSend();
  });
}

const getNode = method("v1.Mesh", "GetNode", Id, Id, false, false);
const watch = method("meshgate.v1.Watch", "WatchMesh", Empty, Watched, false, true);
const start = method("v1.WebRTC", "StartDataChannel", StartDataChannelRequest, DataChannelOffer, true, true);
const http = NodeHttpTransport();
const socket = grpc.WebsocketTransport();
const talk = [
  { nodeId: "web-1", candidate: "a" },
  { nodeId: "web-1", candidate: "b" },
  { nodeId: "web-1", candidate: "c" },
];

console.log(
  JSON.stringify({
    httpUnary: await call(getNode, http, [{ id: "web-1" }]),
    httpStream: await first(watch, http),
    httpRefused: await call(getNode, http, [{ id: "web-1" }], {}),
    socketUnary: await call(getNode, socket, [{ id: "web-1" }]),
    socketStream: await first(watch, socket),
    socketBidi: await call(start, socket, talk),
    socketNotFound: await call(getNode, socket, [{ id: "absent" }]),
    socketRefused: await call(start, socket, talk, {}),
    socketDenied: await call(start, socket, [{ nodeId: "web-1", candidate: "fault" }]),
  }),
);
