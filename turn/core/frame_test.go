// SPDX-License-Identifier: Apache-2.0

package core

import "testing"

func TestFrame_TellsSizesAndStrangers(t *testing.T) {
	const binding = "\x00\x01\x00\x04\x21\x12\xa4\x42"
	for name, v := range map[string]struct {
		in   string
		size int
		bad  bool
	}{
		"nothing":                        {"", 0, false},
		"half a header":                  {binding[:7], 0, false},
		"a header":                       {binding, 24, false},
		"a header and more":              {binding + "xxxxxxxxxxxxxxxxxxxxxxx", 24, false},
		"the longest message":            {"\x00\x01\xff\xfc\x21\x12\xa4\x42", 65552, false},
		"a length of no message":         {"\x00\x01\x00\x03", 0, true},
		"another cookie":                 {"\x00\x01\x00\x04\x21\x12\xa4\x43", 0, true},
		"another cookie, at first sight": {"\x00\x01\x00\x04\x20", 0, true},
		"ChannelData without data":       {"\x40\x00\x00\x00", 4, false},
		"ChannelData of 1 byte":          {"\x40\x00\x00\x01x", 8, false},
		"ChannelData of 4 bytes":         {"\x4f\xff\x00\x04", 8, false},
		"ChannelData of 65535 bytes":     {"\x40\x00\xff\xff", 65540, false},
		"a channel, half":                {"\x40\x00\x00", 0, false},
		"a channel that is reserved":     {"\x50", 0, true},
		"HTTP":                           {"POST / HTTP/1.1\r\n", 0, true},
		"TLS":                            {"\x16\x03\x01\x02\x00\x01\x00\x01", 0, true},
	} {
		if size, err := Frame([]byte(v.in)); size != v.size || (err != nil) != v.bad {
			t.Errorf("%s: %d, %v", name, size, err)
		}
	}
}
