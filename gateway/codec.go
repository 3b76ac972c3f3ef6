// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxNesting bounds how deep messages may be in one another.
const maxNesting = 100

// Names of the codecs of connect, which these replace.
const (
	codecProto    = "proto"
	codecJSON     = "json"
	codecJSONUTF8 = "json; charset=utf-8"
)

// maxFields bounds the fields of a message from a client, with those of the
// messages in it. No request that is of use comes near.
const maxFields = 1 << 16

// withCodecs makes handlers refuse messages of more than limit fields, before one
// is decoded: an empty field takes two bytes on the wire, and a hundred in memory,
// so that the size of a message says little of its cost. lenient is that of
// jsonCodec.
func withCodecs(limit int, lenient bool) connect.HandlerOption {
	return connect.WithHandlerOptions(
		connect.WithCodec(boundedProto{limit}),
		connect.WithCodec(jsonCodec{name: codecJSON, limit: limit, lenient: lenient}),
		connect.WithCodec(jsonCodec{name: codecJSONUTF8, limit: limit, lenient: lenient}),
	)
}

// tooManyFields says that a message has more fields than limit.
func tooManyFields(limit int) error {
	return fmt.Errorf("it has more than %d fields; split it", limit)
}

// boundedProto is connect's codec "proto" with a bound.
type boundedProto struct{ limit int }

// Name implements connect.Codec.
func (boundedProto) Name() string { return codecProto }

// Marshal implements connect.Codec.
func (c boundedProto) Marshal(msg any) ([]byte, error) { return c.MarshalAppend(nil, msg) }

// MarshalAppend spares connect a copy.
func (boundedProto) MarshalAppend(to []byte, msg any) ([]byte, error) {
	m, err := protoOf(msg)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{}.MarshalAppend(to, m)
}

// Unmarshal implements connect.Codec.
func (c boundedProto) Unmarshal(raw []byte, msg any) error {
	m, err := protoOf(msg)
	if err != nil {
		return err
	}
	if left, err := spend(raw, m.ProtoReflect().Descriptor(), c.limit, maxNesting); err != nil {
		return err
	} else if left < 0 {
		return tooManyFields(c.limit)
	}
	return proto.Unmarshal(raw, m)
}

// spend returns what is left of a budget of fields once those of raw are paid,
// those of its messages included; it is negative, and no more is read, when that
// is too little. d describes raw.
func spend(raw []byte, d protoreflect.MessageDescriptor, budget, depth int) (left int, err error) {
	if depth == 0 {
		return 0, fmt.Errorf("its messages are in one another more than %d deep", maxNesting)
	}
	for len(raw) > 0 {
		if budget--; budget < 0 {
			return budget, nil
		}
		number, kind, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		raw = raw[n:]
		if n = protowire.ConsumeFieldValue(number, kind, raw); n < 0 {
			return 0, protowire.ParseError(n)
		}
		value := raw[:n]
		raw = raw[n:]
		field := d.Fields().ByNumber(number)
		if kind != protowire.BytesType || field == nil || field.Message() == nil {
			continue
		}
		inner, _ := protowire.ConsumeBytes(value)
		if budget, err = spend(inner, field.Message(), budget, depth-1); err != nil || budget < 0 {
			return budget, err
		}
	}
	return budget, nil
}

func protoOf(msg any) (proto.Message, error) {
	m, ok := msg.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", msg)
	}
	return m, nil
}
