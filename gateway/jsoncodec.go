// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"regexp"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meshgate/meshgate/proto/meshgate/v1/meshgatev1connect"
	"github.com/meshgate/meshgate/proto/v1/v1connect"
)

// jsonCodec is connect's codec of one of its names for JSON, with a bound. It
// refuses fields that a message does not have: one that is mistyped would count
// as left out, and a list that is left out stands for everything, a condition for
// none.
//
// Protobuf clients are not touched: they have no names that could be mistyped,
// and a newer one may send fields that this gateway does not know.
type jsonCodec struct {
	name  string
	limit int
	// lenient drops fields that are not known, as from a newer client.
	lenient bool
}

var _ connect.Codec = jsonCodec{}

// changesNothing reports whether all procedures of a service leave the mesh as it
// is, so that its JSON may be read leniently. A service that is not named here is
// taken for one that changes something.
func changesNothing(service string) bool {
	switch service {
	case v1connect.NodeName, v1connect.MeshName, v1connect.WebRTCName, meshgatev1connect.WatchName,
		grpchealth.HealthV1ServiceName, grpcreflect.ReflectV1ServiceName, grpcreflect.ReflectV1AlphaServiceName:
		return true
	}
	return false
}

// Name implements connect.Codec.
func (c jsonCodec) Name() string { return c.name }

// IsBinary tells connect that the encoding is text.
func (jsonCodec) IsBinary() bool { return false }

// Marshal implements connect.Codec.
func (c jsonCodec) Marshal(msg any) ([]byte, error) { return c.MarshalAppend(nil, msg) }

// MarshalAppend spares connect a copy.
func (jsonCodec) MarshalAppend(to []byte, msg any) ([]byte, error) {
	m, err := protoOf(msg)
	if err != nil {
		return nil, err
	}
	return protojson.MarshalOptions{}.MarshalAppend(to, m)
}

// Unmarshal implements connect.Codec.
func (c jsonCodec) Unmarshal(raw []byte, msg any) error {
	m, err := protoOf(msg)
	if err != nil {
		return err
	}
	if len(raw) == 0 {
		return errors.New("an empty body is no JSON object; send {} for a message without fields")
	}
	if err := checkJSONFields(raw, c.limit); err != nil {
		return err
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: c.lenient}).Unmarshal(raw, m); err != nil {
		return fmt.Errorf("%s: %s; nothing was changed", m.ProtoReflect().Descriptor().FullName(), protojsonPrefix.ReplaceAllString(err.Error(), ""))
	}
	return nil
}

// protojsonPrefix is what every error of protojson begins with, followed by a
// space of one of two kinds.
var protojsonPrefix = regexp.MustCompile(`^proto:[\s\x{a0}]*`)

// checkJSONFields refuses JSON with more than limit of what begins an element of
// an object or of a list, before one is made. Of what is no JSON it counts
// something.
func checkJSONFields(raw []byte, limit int) error {
	n, inText := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inText && c == '\\':
			i++ // whatever it is, it ends no text
		case c == '"':
			inText = !inText
		case !inText && (c == '{' || c == '[' || c == ','):
			if n++; n > limit {
				return tooManyFields(limit)
			}
		}
	}
	return nil
}
