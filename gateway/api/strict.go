// SPDX-License-Identifier: Apache-2.0

package api

import (
	"errors"
	"fmt"
	"regexp"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// strictJSON reads JSON and refuses fields that a message does not have. A field
// that is mistyped would count as left out, and a list that is left out stands
// for everything: an ACL would let everybody pass.
//
// Protobuf clients are not touched: they have no names that could be mistyped,
// and a newer one may send fields that this gateway does not know.
type strictJSON struct{ name string }

var _ connect.Codec = strictJSON{}

// withStrictJSON makes handlers read JSON with strictJSON, under each of the
// names by which clients ask for JSON.
func withStrictJSON() connect.HandlerOption {
	return connect.WithHandlerOptions(
		connect.WithCodec(strictJSON{"json"}), connect.WithCodec(strictJSON{"json; charset=utf-8"}),
	)
}

// Name implements connect.Codec.
func (c strictJSON) Name() string { return c.name }

// IsBinary tells connect that the encoding is text.
func (strictJSON) IsBinary() bool { return false }

// Marshal implements connect.Codec.
func (strictJSON) Marshal(message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", message)
	}
	return protojson.Marshal(m)
}

// Unmarshal implements connect.Codec.
func (strictJSON) Unmarshal(text []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", message)
	}
	if len(text) == 0 {
		return errors.New("an empty body is no JSON object; send {} for a message without fields")
	}
	if err := CheckJSONFields(text, MaxFields); err != nil {
		return err
	}
	if err := protojson.Unmarshal(text, m); err != nil {
		return fmt.Errorf("%s: %s; nothing was changed", m.ProtoReflect().Descriptor().FullName(), protojsonPrefix.ReplaceAllString(err.Error(), ""))
	}
	return nil
}

// protojsonPrefix is what every error of protojson begins with, followed by a
// space of one of two kinds.
var protojsonPrefix = regexp.MustCompile(`^proto:[\s\x{a0}]*`)
