// SPDX-License-Identifier: Apache-2.0

package turn

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" { // started by a test of this package inside a network namespace
		os.Exit(runHelper())
	}
	goleak.VerifyTestMain(m)
}
