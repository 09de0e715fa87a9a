package operation

import (
	"bytes"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestIgnoreLikeGit compares with git itself: random ignore files over random
// trees, and what git lists as not ignored.
func TestIgnoreLikeGit(t *testing.T) {
	git, err := osexec.LookPath("git")
	if err != nil {
		t.Skip("git is not installed")
	}
	seed := uint64(20260114)
	r := rand.New(rand.NewPCG(seed, 0))
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		dir := t.TempDir()
		for range 40 {
			name := randomPath(r)
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.IsDir() {
				continue
			}
			if os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755) == nil {
				_ = os.WriteFile(filepath.Join(dir, name), nil, 0o644) // a file may stand where a directory would be: then there is one path less
			}
		}
		var all strings.Builder
		for _, sub := range []string{"", "a", "a/b", "b"} {
			if info, err := os.Stat(filepath.Join(dir, sub)); err != nil || !info.IsDir() {
				continue
			}
			var text strings.Builder
			for range r.IntN(6) {
				text.WriteString(randomPattern(r) + "\n")
			}
			writeFile(t, filepath.Join(dir, sub, ".gitignore"), text.String())
			all.WriteString(sub + "/.gitignore:\n" + text.String())
		}
		_, entries := scan(t, dir)
		var got []string
		for _, e := range entries {
			if e.Type == entryFile {
				got = append(got, e.Path)
			}
		}
		want := gitFiles(t, git, dir)
		if !slices.Equal(got, want) {
			for _, p := range want {
				if !slices.Contains(got, p) {
					t.Errorf("%q is ignored here and not by git", p)
				}
			}
			for _, p := range got {
				if !slices.Contains(want, p) {
					t.Errorf("%q is ignored by git and not here", p)
				}
			}
			t.Fatalf("round %d of seed %d:\n%s", round, seed, all.String())
		}
	}
}

func gitFiles(t *testing.T, git, dir string) []string {
	t.Helper()
	run := func(args ...string) []byte {
		cmd := osexec.CommandContext(t.Context(), git, args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + filepath.Dir(git), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %q: %v: %s", args, err, stderr.String())
		}
		return out
	}
	run("init", "-q", "--template=")
	var files []string
	for name := range strings.SplitSeq(string(run("ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")), "\x00") {
		if name != "" {
			files = append(files, name)
		}
	}
	slices.Sort(files)
	return files
}

func pick(r *rand.Rand, list ...string) string { return list[r.IntN(len(list))] }

func randomPath(r *rand.Rand) string {
	names := make([]string, 1+r.IntN(4))
	for i := range names {
		names[i] = pick(r, "a", "b", "c", "ab", "abc", "a.o", "b.o", "x y", "#h", "!n", "[z]", "-", "é", "d ")
	}
	return strings.Join(names, "/")
}

func randomPattern(r *rand.Rand) string {
	var b strings.Builder
	b.WriteString(pick(r, "", "", "", "!", "/", "!/", "**/", "\\"))
	for i := range 1 + r.IntN(3) {
		if i > 0 {
			b.WriteString("/")
		}
		b.WriteString(pick(r, "a", "b", "c", "ab", "*", "**", "*.o", "a*", "*b*", "?", "??", "[ab]", "[!a]", "[^b]", "[a-c]",
			"[[:alpha:]]", "[]z]", "\\[z\\]", "[z", "a**", "**b", "#h", "!n", "x y", "d\\ ", "é", "[\\]z]", "***"))
	}
	b.WriteString(pick(r, "", "", "", "/", "/**", "/*", " ", "\\", "\r"))
	return b.String()
}

func TestParseRule(t *testing.T) {
	for _, c := range []struct {
		line, path string
		dir, want  bool
	}{
		{"build/", "build", true, true},
		{"build/", "build", false, false},
		{"a/**/b", "a/b", false, true},
		{"a/**/b", "a/x/y/b", false, true},
		{"**/a/b", "a/x/a/b", false, true},
		{"a/**", "a", true, false},
		{"/a", "b/a", false, false},
		{"a", "b/a", false, true},
		{"b/a", "c/b/a", false, false},
		{"[!a]1", "b1", false, true},
		{`\#a`, "#a", false, true},
		{"#a", "#a", false, false},
		{"a ", "a", false, true},
		{`a\ `, "a ", false, true},
		{"*", "a/b", false, true},
		{"", "a", false, false},
		{"/", "a", true, false},
		{"[", "[", false, false},
	} {
		r, ok := parseRule(c.line, 0)
		if got := ok && r.match(strings.Split(c.path, "/"), c.dir); got != c.want {
			t.Errorf("%q matches %q (directory %v): %v", c.line, c.path, c.dir, got)
		}
	}
}

func FuzzRule(f *testing.F) {
	f.Add("a/**/[!b]*", "a/b/c")
	f.Add(`\`, "a")
	f.Add("[[:alpha:]-\\]]", "b")
	f.Fuzz(func(t *testing.T, line, path string) {
		if r, ok := parseRule(line, 0); ok && path != "" {
			r.match(strings.Split(path, "/"), true)
		}
	})
}
