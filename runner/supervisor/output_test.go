package supervisor

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestBinaryOutput(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		s := sh(t, `head -c 50000000 /dev/urandom > data; cat data; cat data >&2`)
		if end := run(t, j, s); end.State != wire.Success || end.LogBytes != 100_000_000 {
			t.Fatalf("got %+v", end)
		}
		data, err := os.ReadFile(filepath.Join(s.WorkDir, "data"))
		if err != nil {
			t.Fatal(err)
		}
		want := sha256.Sum256(data)
		for _, stream := range []wire.StreamID{wire.Stdout, wire.Stderr} {
			if sha256.Sum256([]byte(logOf(t, s, stream))) != want {
				t.Errorf("stream %d is not what was written", stream)
			}
		}
	})
}

func TestLongLine(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		s := sh(t, `head -c 5000000 /dev/zero | tr '\0' x; echo; echo err >&2`)
		run(t, j, s)
		if got := logOf(t, s, wire.Stdout); got != strings.Repeat("x", 5_000_000)+"\n" {
			t.Errorf("%d bytes", len(got))
		}
		if got := logOf(t, s, wire.Stderr); got != "err\n" {
			t.Errorf("%q", got)
		}
	})
}

// Output written in turns, each only when the last one has been taken.
func TestOrderOfArrival(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		s := sh(t, "")
		s.Steps[0].Argv[2] = `taken() { until grep -qa "$1" ` + filepath.Join(s.Dir, LogFile) + `; do sleep 0.01; done; }
			for i in 1 2 3 4 5; do echo out $i; taken "out $i"; echo err $i >&2; taken "err $i"; done`
		run(t, j, s)
		var want strings.Builder
		for i := range 5 {
			fmt.Fprintf(&want, "out %d\nerr %d\n", i+1, i+1)
		}
		if got := logOf(t, s, 0); got != want.String() {
			t.Errorf("got %q", got)
		}
	})
}

func TestLogLimit(t *testing.T) {
	each(t, func(t *testing.T, j Jobs) {
		s := sh(t, `head -c 3000000 /dev/zero | tr '\0' x; echo done > done`)
		s.LogLimit = 1 << 20
		if end := run(t, j, s); end.State != wire.Success {
			t.Errorf("got %+v", end)
		}
		if got := logOf(t, s, wire.Stdout); got != strings.Repeat("x", 1<<20) {
			t.Errorf("%d bytes are kept", len(got))
		}
		if got := logOf(t, s, wire.Notice); got != "output limit of 1.0 MiB reached; what follows is discarded\n" {
			t.Errorf("said %q", got)
		}
		// Just reached is not over.
		s = sh(t, `printf 12345`)
		s.LogLimit = 5
		if run(t, j, s); logOf(t, s, 0) != "12345" {
			t.Errorf("got %q", logOf(t, s, 0))
		}
	})
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{5: "5 B", 1 << 10: "1.0 KiB", 1 << 30: "1.0 GiB", 1536 << 20: "1.5 GiB", 64 << 20: "64.0 MiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// With a full disk the job waits; nothing is lost once there is room.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	for _, kind := range kinds(t) {
		t.Run(kind, func(t *testing.T) {
			small := t.TempDir()
			if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=6m"); err != nil {
				t.Skipf("mount: %v", err)
			}
			defer unix.Unmount(small, unix.MNT_DETACH)
			ballast := filepath.Join(small, "ballast")
			if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			sup, err := New(Config{Dir: t.TempDir(), Isolation: kind, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
			if err != nil {
				t.Fatal(err)
			}
			defer sup.Close()
			s := sh(t, `head -c 5000000 /dev/zero | tr '\0' x; echo; echo end >&2`)
			s.Dir = filepath.Join(small, "attempt")
			start(t, sup, s)
			await(t, "a full disk", func() bool {
				var st unix.Statfs_t
				unix.Statfs(small, &st)
				return st.Bfree < 16
			})
			if all, _ := sup.List(t.Context()); len(all) != 1 || all[0].End != nil {
				t.Fatalf("with a full disk: %+v", all)
			}
			os.Remove(ballast)
			end := ended(t, sup, s.JobRef)
			check(t, s, end)
			if end.State != wire.Success || logOf(t, s, wire.Stdout) != strings.Repeat("x", 5_000_000)+"\n" || logOf(t, s, wire.Stderr) != "end\n" {
				t.Errorf("got %+v and %d bytes", end, end.LogBytes)
			}
		})
	}
}
