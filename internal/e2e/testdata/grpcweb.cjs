// SPDX-License-Identifier: Apache-2.0

// A page's half of a conversation with the stock gRPC-web client and its
// WebSocket transport: GetStatus, and StartDataChannel as far as the offer.
//
//   node --experimental-websocket grpcweb.cjs URL TOKEN NODE
//
// It prints one line of JSON.
"use strict";

const { grpc } = require("@improbable-eng/grpc-web");
const { BinaryReader, BinaryWriter } = require("google-protobuf");

/**
 * A message class as protoc makes them for this client, of singular strings
 * and booleans: fields maps a name to its number and kind.
 */
function message(fields) {
  const entries = Object.entries(fields);
  return class Message {
    constructor(values = {}) {
      Object.assign(this, values);
    }

    serializeBinary() {
      const writer = new BinaryWriter();
      for (const [name, [number, kind]] of entries) {
        if (this[name] !== undefined) {
          writer[`write${kind}`](number, this[name]);
        }
      }
      return writer.getResultBuffer();
    }

    toObject() {
      return { ...this };
    }

    static deserializeBinary(bytes) {
      const reader = new BinaryReader(bytes);
      const result = new Message();
      while (reader.nextField()) {
        const found = entries.find(([, [number]]) => number === reader.getFieldNumber());
        if (found === undefined) {
          reader.skipField();
        } else {
          result[found[0]] = reader[`read${found[1][1]}`]();
        }
      }
      return result;
    }
  };
}

const node = { serviceName: "v1.Node" };
const webrtc = { serviceName: "v1.WebRTC" };

const getStatus = {
  methodName: "GetStatus",
  service: node,
  requestStream: false,
  responseStream: false,
  requestType: message({ id: [1, "String"] }),
  responseType: message({ id: [1, "String"], version: [2, "String"] }),
};

const startDataChannel = {
  methodName: "StartDataChannel",
  service: webrtc,
  requestStream: true,
  responseStream: true,
  requestType: message({ nodeId: [1, "String"], answer: [5, "String"], inBand: [100, "Bool"] }),
  responseType: message({ offer: [1, "String"], candidate: [3, "String"] }),
};

const [host, token, target] = process.argv.slice(2);
const transport = grpc.WebsocketTransport();
const metadata = () => new grpc.Metadata({ authorization: `Bearer ${token}` });

/** A unary call: its code, message and answer. */
function unary(request, metadata) {
  return new Promise((resolve) => {
    let answer;
    grpc.invoke(getStatus, {
      host,
      transport,
      metadata,
      request: new getStatus.requestType(request),
      onMessage(message) {
        answer = message.toObject();
      },
      onEnd(code, message) {
        resolve({ code: grpc.Code[code], message, answer });
      },
    });
  });
}

/**
 * A streaming call as far as the offer. Then the client cancels it, or sends
 * the answer that it was given, and waits for the end.
 */
function offer(request, answer) {
  return new Promise((resolve) => {
    const result = { candidates: 0 };
    const call = grpc.client(startDataChannel, { host, transport });
    call.onMessage((message) => {
      if (message.offer === undefined) {
        result.candidates++;
        return;
      }
      result.offer = JSON.parse(message.offer).type;
      if (answer === undefined) {
        call.close();
        resolve(result);
      } else {
        call.send(new startDataChannel.requestType({ ...request, answer }));
      }
    });
    call.onEnd((code, message) => resolve({ ...result, code: grpc.Code[code], message }));
    call.start(metadata());
    call.send(new startDataChannel.requestType(request));
  });
}

(async () => {
  const result = {
    own: await unary({}, metadata()),
    other: await unary({ id: target }, metadata()),
    stranger: await unary({}, new grpc.Metadata()),
    offer: await offer({ nodeId: target, inBand: true }),
    badAnswer: await offer({ nodeId: target, inBand: true }, "not JSON"),
    nobody: await offer({ nodeId: "nobody", inBand: true }),
  };
  console.log(JSON.stringify(result));
})();
