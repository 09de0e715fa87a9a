package supervisor

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir/joblog"
)

// What one attempt has left must not show in the next one of its directory.
func TestRecycle(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if kept := Recycle(dir); len(kept) > 0 {
		t.Errorf("of nothing %q is kept", kept)
	}
	for range 2 {
		write(LogFile, "what the first one said")
		if err := writeEnd(dir, &End{State: wire.Success, LogBytes: 23}, true); err != nil {
			t.Fatal(err)
		}
		if kept := Recycle(dir); !slices.Equal(kept, []string{LogFile + spareSuffix, handleFile + spareSuffix}) {
			t.Errorf("kept %q", kept)
		}
		if Begun(dir) {
			t.Error("an attempt that has not begun has")
		}
		if end, err := readEnd(dir); end != nil || err != nil {
			t.Errorf("it has ended before it began: %+v, %v", end, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 {
			t.Errorf("files %v, %v", entries, err)
		}
	}
	// The next one: until its handle is written over the old end, that is the
	// handle of no tree.
	takeSpare(dir, handleFile)
	if _, err := os.Lstat(file(handleFile)); err != nil {
		t.Error(err)
	}
	if err := KillLeftovers(dir); err != nil {
		t.Errorf("kill what is left of nothing: %v", err)
	}
	takeSpare(dir, LogFile)
	w, err := joblog.Create(file(LogFile))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if !Begun(dir) || w.Len() != 0 {
		t.Errorf("begun %t with %d bytes", Begun(dir), w.Len())
	}
	// A log that is there is never replaced.
	write(LogFile, "mine")
	write(LogFile+spareSuffix, "")
	takeSpare(dir, LogFile)
	if text, err := os.ReadFile(file(LogFile)); string(text) != "mine" {
		t.Errorf("log is now %q, %v", text, err)
	}
}

// A symbolic link in place of a file is not followed.
func TestRecycleRefusesLinks(t *testing.T) {
	dir, precious := t.TempDir(), filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{LogFile, endFile, LogFile + spareSuffix} {
		if err := os.Symlink(precious, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if kept := Recycle(dir); len(kept) > 0 {
		t.Errorf("kept %q", kept)
	}
	if text, _ := os.ReadFile(precious); string(text) != "text" {
		t.Errorf("the link's target is now %q", text)
	}
}
