// SPDX-License-Identifier: Apache-2.0

package mesh

import "fmt"

// Refusal is an error with a text for people of its own. Where the text alone is
// told, find it with errors.As.
type Refusal struct {
	// Kind is one of the errors of this package.
	Kind error
	// Text says what is refused and why, without the kind.
	Text string
}

// Refuse returns a Refusal whose text is made as that of fmt.Sprintf.
func Refuse(kind error, format string, args ...any) error {
	return &Refusal{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// Error implements error: the kind, then the text.
func (r *Refusal) Error() string { return r.Kind.Error() + ": " + r.Text }

// Unwrap returns the kind.
func (r *Refusal) Unwrap() error { return r.Kind }
