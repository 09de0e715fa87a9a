package main

import (
	"os/exec"

	"github.com/rogpeppe/go-internal/testscript"
)

// stamped FILE VERSION: builds this program as FILE, as a release of that version.
func stamped(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "stamped FILE VERSION")
	// In this process's directory and environment, not the script's.
	out, err := exec.Command("go", "build", "-ldflags", "-X main.number="+args[1], "-o", ts.MkAbs(args[0]), ".").CombinedOutput()
	if err != nil {
		ts.Fatalf("build %s: %v\n%s", args[0], err, out)
	}
}
