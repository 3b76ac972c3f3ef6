// SPDX-License-Identifier: Apache-2.0

package api

import "fmt"

// MaxFields bounds the fields of a message from a client, with those of the
// messages in it. No request that is of use comes near.
const MaxFields = 1 << 16

// TooManyFields says that a message has more fields than limit.
func TooManyFields(limit int) error {
	return fmt.Errorf("it has more than %d fields; split it", limit)
}

// CheckJSONFields refuses JSON with more than limit of what begins an element of
// an object or of a list, before one is made. Of what is no JSON it counts
// something.
func CheckJSONFields(raw []byte, limit int) error {
	n, inText := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case inText && c == '\\':
			i++ // whatever it is, it ends no text
		case c == '"':
			inText = !inText
		case !inText && (c == '{' || c == '[' || c == ','):
			if n++; n > limit {
				return TooManyFields(limit)
			}
		}
	}
	return nil
}
