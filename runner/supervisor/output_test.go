package supervisor

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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
			waits := make(chan string, 1000) // as told; never full: an event tells of what has changed
			go sup.Watch(t.Context(), func(e Event) { waits <- e.Waits })
			start(t, sup, s)
			await(t, "a full disk", func() bool {
				var st unix.Statfs_t
				unix.Statfs(small, &st)
				return st.Bfree < 16
			})
			if all, _ := sup.List(t.Context()); len(all) != 1 || all[0].End != nil {
				t.Fatalf("with a full disk: %+v", all)
			}
			told := func(what string, cond func(string) bool) {
				t.Helper()
				for limit := time.After(time.Minute); ; {
					select {
					case why := <-waits:
						if cond(why) {
							return
						}
					case <-limit:
						t.Fatalf("watchers are not told that %s", what)
					}
				}
			}
			told("it waits", func(why string) bool { return strings.Contains(why, "no space left") })
			os.Remove(ballast)
			told("it goes on", func(why string) bool { return why == "" })
			end := ended(t, sup, s.JobRef)
			check(t, s, end)
			if end.State != wire.Success || logOf(t, s, wire.Stdout) != strings.Repeat("x", 5_000_000)+"\n" || logOf(t, s, wire.Stderr) != "end\n" {
				t.Errorf("got %+v and %d bytes", end, end.LogBytes)
			}
		})
	}
}

// spotter is a log that looks for a text.
type spotter struct {
	text []byte
	seen chan struct{} // closed when it was there
	once sync.Once
}

func (s *spotter) Write(b []byte) (int, error) {
	if bytes.Contains(b, s.text) {
		s.once.Do(func() { close(s.seen) })
	}
	return len(b), nil
}

// fewFiles is a file system that has room for so many files.
func fewFiles(t *testing.T, n int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("nr_inodes=%d", n)); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// takeFiles makes files until there is no room for one; free removes them.
func takeFiles(t *testing.T, dir string) (free func()) {
	t.Helper()
	var made []string
	for {
		path := filepath.Join(dir, fmt.Sprintf("taken%d", len(made)))
		err := os.WriteFile(path, nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, path)
	}
	return func() {
		for _, path := range made {
			os.Remove(path)
		}
	}
}

// An end that cannot be recorded is said all the same, and recorded once there
// is room; not into a directory that was forgotten.
func TestEndWithoutRoom(t *testing.T) {
	for _, forget := range []bool{false, true} {
		t.Run(fmt.Sprintf("forget=%t", forget), func(t *testing.T) {
			small := fewFiles(t, 40)
			sup, err := New(Config{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
			if err != nil {
				t.Fatal(err)
			}
			defer sup.Close()
			s := sh(t, "")
			s.Dir = filepath.Join(small, "attempt")
			// It removes what would become its end.
			s.Steps[0].Argv[2] = "rm " + filepath.Join(s.Dir, handleFile) + "; echo on; " + untilGo
			start(t, sup, s)
			await(t, "the handle's removal", func() bool { return logOf(t, s, 0) == "on\n" })
			free := takeFiles(t, small)
			if err := os.WriteFile(filepath.Join(s.WorkDir, "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if end := ended(t, sup, s.JobRef); end.State != wire.Success || end.LogBytes != 6 {
				t.Errorf("got %+v", end)
			}
			if _, err := ReadEnd(s.Dir); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("there was room for it: %v", err)
			}
			if forget {
				if err := sup.Forget(t.Context(), s.JobRef); err != nil {
					t.Fatal(err)
				}
				free()
				sup.wg.Wait() // for what would write
				if _, err := ReadEnd(s.Dir); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a directory that was forgotten is written to: %v", err)
				}
				return
			}
			free()
			await(t, "the record of the end", func() bool {
				end, err := ReadEnd(s.Dir)
				return err == nil && end.State == wire.Success && end.LogBytes == 6
			})
		})
	}
}

// A job for whose handle there is no room waits for it; one that is stopped
// does not.
func TestHandleWithoutRoom(t *testing.T) {
	for _, stop := range []bool{false, true} {
		t.Run(fmt.Sprintf("stop=%t", stop), func(t *testing.T) {
			small := fewFiles(t, 40)
			waits := &spotter{text: []byte("waiting for room"), seen: make(chan struct{})}
			sup, err := New(Config{Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(waits, nil))})
			if err != nil {
				t.Fatal(err)
			}
			defer sup.Close()
			s := sh(t, "echo on")
			s.Dir = filepath.Join(small, "attempt")
			if err := os.Mkdir(s.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(s.Dir, LogFile+spareSuffix), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			free := takeFiles(t, small)
			start(t, sup, s)
			<-waits.seen
			if stop {
				if err := sup.Stop(t.Context(), s.JobRef, false); err != nil {
					t.Fatal(err)
				}
				if end := ended(t, sup, s.JobRef); end.State != wire.Canceled || logOf(t, s, 0) != "" {
					t.Errorf("got %+v, %q", end, logOf(t, s, 0))
				}
				free()
				return
			}
			free()
			if end := ended(t, sup, s.JobRef); end.State != wire.Success || logOf(t, s, 0) != "on\n" {
				t.Errorf("got %+v, %q", end, logOf(t, s, 0))
			}
		})
	}
}
