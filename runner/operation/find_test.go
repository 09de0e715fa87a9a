package operation

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestFindPassesOverForeignParents(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a file to another user; the tests run as root in CI")
	}
	dir := t.TempDir()
	below := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, ProjectFile)
	if err := os.WriteFile(path, []byte("project = \"shop\"\n[[app]]\nname = \"web\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if p, err := Find(below); err != nil || p.Name() != "shop" {
		t.Fatalf("own file in a parent: %v", err)
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := Find(below)
	if wire.KindOf(err) != wire.NotFound || !strings.Contains(err.Error(), "another user") {
		t.Errorf("another's file in a parent: %v", err)
	}
	if _, err := Find(dir); err != nil {
		t.Errorf("another's file in the directory itself: %v", err)
	}
}
