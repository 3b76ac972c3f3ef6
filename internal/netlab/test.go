// SPDX-License-Identifier: Apache-2.0

//go:build linux

package netlab

// TB is what a lab needs of a test: testing.TB has it.
type TB interface {
	Helper()
	Cleanup(f func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// TestLab is a lab of a test, which fails when something cannot be built.
type TestLab struct {
	*Lab
	t TB
}

// New makes a lab that is gone when the test is over.
func New(t TB) *TestLab {
	t.Helper()
	l, err := Start("lab")
	if err != nil {
		t.Fatalf("network lab: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("network lab: %v", err)
		}
	})
	return &TestLab{Lab: l, t: t}
}

// Server is Lab.Server for a test.
func (l *TestLab) Server(name string) *Side {
	l.t.Helper()
	return l.must(l.Lab.Server(name))
}

// Side is Lab.Side for a test.
func (l *TestLab) Side(name string, kind Kind) *Side {
	l.t.Helper()
	return l.must(l.Lab.Side(name, kind))
}

func (l *TestLab) must(s *Side, err error) *Side {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("network lab: %v", err)
	}
	return s
}
