// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meshgate/meshgate/gateway/api"
)

// maxNesting bounds how deep messages may be in one another.
const maxNesting = 100

// Names of the codecs of connect, which these replace.
const (
	codecProto    = "proto"
	codecJSON     = "json"
	codecJSONUTF8 = "json; charset=utf-8"
)

// withBoundedFields makes handlers refuse messages of more than limit fields,
// before one is decoded: an empty field takes two bytes on the wire, and a
// hundred in memory, so that the size of a message says little of its cost.
func withBoundedFields(limit int) connect.HandlerOption {
	return connect.WithHandlerOptions(
		connect.WithCodec(boundedProto{limit}),
		connect.WithCodec(boundedJSON{codecJSON, limit}),
		connect.WithCodec(boundedJSON{codecJSONUTF8, limit}),
	)
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
		return api.TooManyFields(c.limit)
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

// boundedJSON is connect's codec of one of its names for JSON, with a bound.
type boundedJSON struct {
	name  string
	limit int
}

// Name implements connect.Codec.
func (c boundedJSON) Name() string { return c.name }

// Marshal implements connect.Codec.
func (c boundedJSON) Marshal(msg any) ([]byte, error) { return c.MarshalAppend(nil, msg) }

// MarshalAppend spares connect a copy.
func (boundedJSON) MarshalAppend(to []byte, msg any) ([]byte, error) {
	m, err := protoOf(msg)
	if err != nil {
		return nil, err
	}
	return protojson.MarshalOptions{}.MarshalAppend(to, m)
}

// Unmarshal implements connect.Codec. Fields that are not known are dropped, as
// from a client of another version.
func (c boundedJSON) Unmarshal(raw []byte, msg any) error {
	m, err := protoOf(msg)
	if err != nil {
		return err
	}
	if len(raw) == 0 {
		return errors.New("it is empty, which is no JSON object")
	}
	if err := api.CheckJSONFields(raw, c.limit); err != nil {
		return err
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, m)
}

func protoOf(msg any) (proto.Message, error) {
	m, ok := msg.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no protobuf message", msg)
	}
	return m, nil
}
