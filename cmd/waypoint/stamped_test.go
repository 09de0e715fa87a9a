package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// stampedName is what a program's file is called before its version.
const stampedName = "waypoint-"

// stampedNumber is the version that a program of stamped is of.
func stampedNumber(path string) (string, bool) {
	return strings.CutPrefix(filepath.Base(path), stampedName)
}

// stamped VERSION...: makes this program waypoint-VERSION, which is of that
// version. It is the same file: its name says what it is, to whoever starts it,
// and it starts itself by it.
func stamped(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "stamped VERSION...")
	self, err := os.Executable()
	ts.Check(err)
	for _, version := range args {
		to := ts.MkAbs(stampedName + version)
		if os.Link(self, to) == nil {
			continue
		}
		text, err := os.ReadFile(self) // on another file system
		ts.Check(err)
		ts.Check(os.WriteFile(to, text, 0o700))
	}
}
