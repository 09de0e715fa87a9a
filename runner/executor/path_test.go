package executor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What lies in PATH but is no program, or cannot be reached, is not found; a
// file that may not be executed is said to be so, unless a later one may.
func TestResolveInPath(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"plain", "folder/tool", "closed", "good"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, mode := range map[string]os.FileMode{"plain/tool": 0o644, "closed/tool": 0o755, "good/tool": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "closed"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "closed"), 0o755) })
	for _, tt := range []struct {
		path string
		code int // 0: found
	}{
		{"plain", 126},
		{"folder", 127},
		{"nowhere:folder", 127},
		{"plain:folder:good", 0},
		{"nowhere", 127},
	} {
		c := Command{Argv: []string{"tool"}, Dir: dir, Env: []string{"PATH=" + tt.path}}
		_, err := c.resolve()
		if e, ok := errors.AsType[*StartError](err); tt.code == 0 && err != nil || tt.code != 0 && (!ok || e.Code != tt.code) {
			t.Errorf("PATH=%s: %v, want code %d", tt.path, err, tt.code)
		}
	}
	c := Command{Argv: []string{"tool"}, Dir: dir, Env: []string{"PATH=closed"}}
	if _, err := c.resolve(); os.Getuid() != 0 {
		if e, ok := errors.AsType[*StartError](err); !ok || e.Code != 127 {
			t.Errorf("a directory that may not be searched: %v, want code 127", err)
		}
	}
}
