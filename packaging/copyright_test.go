// Package packaging has the packages of distributions: deb and rpm, built by
// build.sh as nfpm.yaml says. Its Go files are tests of what is in them.
package packaging

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the file copyright anew")

// TestCopyright: the file copyright names every module that is linked in, with
// its licence, word for word. A new dependency fails it until the file has been
// written anew, and read:
//
//	go test ./packaging -run TestCopyright -update
func TestCopyright(t *testing.T) {
	var want bytes.Buffer
	want.WriteString(header)
	names := []string{"Apache-2.0"} // our own
	for _, m := range linked(t) {
		s := m.stanza(t)
		names = append(names, strings.Split(s.licence, " and ")...)
		s.write(&want)
	}
	if *update {
		if err := os.WriteFile("copyright", want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("copyright")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("copyright is not what the modules that are linked in say: go test ./packaging -run TestCopyright -update")
	}

	// An rpm has one line for all of it. What is in the public domain has no licence to be named.
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(s string) bool { return s == "public-domain" })
	line := "license: " + strings.NewReplacer("Expat", "MIT", "-clause", "-Clause").Replace(strings.Join(names, " AND ")) + "\n"
	config, err := os.ReadFile("nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(config, []byte(line)) {
		t.Errorf("nfpm.yaml has another line than %q", line)
	}
}

const header = `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Waypoint
Source: https://github.com/waypointd/waypoint
Comment: /usr/bin/waypoint has in it what these Go modules and Go's own library
 have. "go version -m /usr/bin/waypoint" names their versions, and "go mod
 download MODULE@VERSION" gets their sources.

Files: *
Copyright: The Waypoint authors
License: Apache-2.0
 On Debian systems the full text of the Apache License 2.0 is in
 /usr/share/common-licenses/Apache-2.0; elsewhere it is beside this file.
`

// module is one that is linked in, with the directories of its packages.
type module struct {
	path     string
	dir      string
	packages map[string]bool
}

// linked are the modules of the program on the architectures that there are
// packages for, and Go's library as the last one.
func linked(t *testing.T) []module {
	t.Helper()
	found := map[string]module{}
	for _, arch := range []string{"amd64", "arm64"} {
		needed(t, found, arch, "../cmd/waypoint")
	}
	goroot, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	root := strings.TrimSpace(string(goroot))
	return append(sorted(found), module{"go", root, map[string]bool{root: true}})
}

func sorted(found map[string]module) []module {
	return slices.SortedFunc(maps.Values(found), func(a, b module) int { return cmp.Compare(a.path, b.path) })
}

// offline is what go says of a module that is not here and cannot be fetched.
var offline = regexp.MustCompile(`dial tcp|module lookup disabled`)

// needed adds the modules of packages, and of what these import. The test is
// skipped where they are not here and there is no network.
func needed(t *testing.T, found map[string]module, arch string, packages ...string) {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", append([]string{"list", "-deps", "-json=Dir,Standard,Module"}, packages...)...)
	list.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	switch {
	case err != nil && offline.Match(stderr.Bytes()):
		t.Skipf("modules are not here: %s", &stderr)
	case err != nil:
		t.Fatalf("go list: %v: %s", err, &stderr)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			Dir      string
			Standard bool
			Module   *struct {
				Path, Dir string
				Main      bool
			}
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Standard || p.Module == nil || p.Module.Main {
			continue
		}
		m, ok := found[p.Module.Path]
		if !ok {
			m = module{p.Module.Path, p.Module.Dir, map[string]bool{}}
			found[m.path] = m
		}
		m.packages[p.Dir] = true
	}
}

var texts = regexp.MustCompile(`(?i)^(unlicen[cs]e|licen[cs]e|copying|notice)`)

// notOfBinary are texts that are about nothing that is linked in.
var notOfBinary = map[string]string{
	"modernc.org/memory/LICENSE-LOGO":         "a picture's",
	"modernc.org/sqlite/LICENSE-3RD-PARTY.md": "repeats what the other modules have themselves",
	"modernc.org/sqlite/LICENSE-SQLITE_VEC":   "an extension that is not linked in",
}

// stanza is a paragraph of the file copyright.
type stanza struct {
	files, copyright, licence, text string
}

func (m module) stanza(t *testing.T) stanza {
	t.Helper()
	// A package may be under another licence than its module.
	dirs := map[string]bool{}
	for dir := range m.packages {
		for ; !dirs[dir] && len(dir) >= len(m.dir); dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
	}
	s := stanza{files: "vendor/" + m.path + "/*"}
	var parts, licences, holders []string
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(m.path, strings.TrimPrefix(filepath.Join(dir, e.Name()), m.dir))
			if e.IsDir() || strings.HasSuffix(e.Name(), ".go") || !texts.MatchString(e.Name()) || notOfBinary[path] != "" {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(string(data), "\r\n", "\n")
			known := kinds(text)
			if len(known) == 0 && !strings.HasPrefix(strings.ToUpper(e.Name()), "NOTICE") {
				t.Errorf("%s is of no licence that is known here; read it", path)
			}
			licences = append(licences, known...)
			holders = append(holders, held(text)...)
			parts = append(parts, apache.ReplaceAllString(text, "[Apache License 2.0: see above for where its text is]\n"))
		}
	}
	slices.Sort(licences)
	licences = slices.Compact(licences)
	if len(licences) == 0 {
		t.Fatalf("%s: no licence that is known here; read it before it is linked in", m.path)
	}
	s.licence = strings.Join(licences, " and ")
	if len(holders) == 0 {
		holders = []string{"The authors of " + m.path}
	}
	slices.Sort(holders)
	s.copyright = strings.Join(slices.Compact(holders), "\n           ")
	s.text = strings.Join(parts, "\n----\n")
	return s
}

// apache is the licence's own text, which Debian has once for all packages.
var apache = regexp.MustCompile(`(?s) *Apache License\n *Version 2\.0.*?(END OF TERMS AND CONDITIONS|limitations under the License\.)\n(.*?APPENDIX.*?limitations under the License\.\n)?`)

// kinds are the licences in a text, by words that only that licence has.
func kinds(text string) []string {
	text = strings.Join(strings.Fields(text), " ")
	var all []string
	for _, k := range []struct {
		name  string
		words string
	}{
		{"Apache-2.0", "Apache License Version 2.0"},
		{"BSD-3-clause", "Neither the name"},
		{"BSD-3-clause", "names of its contributors may be used to endorse"},
		{"Expat", "Permission is hereby granted, free of charge, to any person"},
		{"MPL-2.0", "Mozilla Public License, version 2.0"},
		{"public-domain", "has been dedicated to the public domain by the authors"},
	} {
		if strings.Contains(text, k.words) {
			all = append(all, k.name)
		}
	}
	if !slices.Contains(all, "BSD-3-clause") && strings.Contains(text, "Redistributions in binary form must reproduce") {
		all = append(all, "BSD-2-clause")
	}
	return all
}

var holder = regexp.MustCompile(`(?m)^[ \t]*Copyright (?:\([cC]\) |© )?((?:[0-9]|©|The ).*)$`)

func held(text string) []string {
	var all []string
	for _, m := range holder.FindAllStringSubmatch(text, -1) {
		all = append(all, strings.TrimSuffix(strings.TrimSpace(m[1]), " All rights reserved."))
	}
	return all
}

func (s stanza) write(w *bytes.Buffer) {
	w.WriteString("\nFiles: " + s.files + "\nCopyright: " + s.copyright + "\nLicense: " + s.licence + "\n")
	for line := range strings.Lines(strings.Trim(s.text, "\n")) {
		line = strings.TrimRight(line, " \t\n")
		if line == "" {
			line = "."
		}
		w.WriteString(" " + line + "\n")
	}
}
