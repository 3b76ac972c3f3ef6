// SPDX-License-Identifier: Apache-2.0

package secrets

// SetLimit makes n tokens the most of a mesh; before Run only.
func (s *Secrets) SetLimit(n int) { s.limit = n }

// RetryDelay is the pause after the store did not answer.
const RetryDelay = retryDelay
