package packaging

import (
	"strings"
	"testing"
)

// allowed are the licences that something may have that is linked in. Whatever
// else comes is read first, and its reason written here.
var allowed = map[string]string{
	"Apache-2.0":    "our own; its notices are in the file copyright",
	"BSD-3-clause":  "asks for its text, which the file copyright has, and that nobody advertises with the authors' names",
	"Expat":         "asks for its text, which the file copyright has",
	"MPL-2.0":       "holds for the files that have it, which are linked in unchanged; the file copyright says where their source is",
	"public-domain": "asks for nothing",
}

// alsoOfTools are allowed besides in what builds and tests, which nobody is
// given.
var alsoOfTools = map[string]string{
	"BSD-2-clause": "asks for its text where it is given away",
}

// TestLicences: what is linked in, and what builds and tests it, has licences
// that are allowed, and no other.
func TestLicences(t *testing.T) {
	ours := linked(t)
	if len(ours) < 15 {
		t.Fatalf("only %d modules are linked in", len(ours))
	}
	seen := map[string]bool{}
	for _, m := range ours {
		for name := range strings.SplitSeq(m.stanza(t).licence, " and ") {
			seen[name] = true
			if allowed[name] == "" {
				t.Errorf("%s is linked in and has the licence %s, which is not allowed", m.path, name)
			}
		}
	}
	for name := range allowed {
		if !seen[name] {
			t.Errorf("nothing has the licence %s any more", name)
		}
	}

	tools := map[string]module{}
	for _, args := range [][]string{
		{"-test", "../..."},
		{"-modfile=../contrib/tools.mod", "tool"},
		{"-modfile=tools.mod", "tool"},
		{"-modfile=tools.mod", "-tags=sbom", "./sbom"},
	} {
		needed(t, tools, "amd64", args...)
	}
	if len(tools) < 50 {
		t.Fatalf("only %d modules are needed to build and test", len(tools))
	}
	for _, m := range sorted(tools) {
		for name := range strings.SplitSeq(m.stanza(t).licence, " and ") {
			seen[name] = true
			if allowed[name] == "" && alsoOfTools[name] == "" {
				t.Errorf("%s is used to build or test and has the licence %s, which is not allowed", m.path, name)
			}
		}
	}
	for name := range alsoOfTools {
		if !seen[name] {
			t.Errorf("no tool has the licence %s any more", name)
		}
	}
}
