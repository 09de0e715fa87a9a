package store

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// child is a process of its own that submits jobs and says which were
// acknowledged, until it is killed.
func child() {
	s, err := Open(context.Background(), os.Getenv("STORE_TEST_CHILD"), Config{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				var id string
				if err := s.Update(context.Background(), func(tx *Tx) error {
					jobs, err := tx.Submit([]wire.JobSpec{run(), run(dependsOn("#0"))}, time.Now())
					if err == nil {
						id = jobs[1].ID
					}
					return err
				}); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func TestKill(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		acknowledged := map[string]bool{}
		for range 3 {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+dsn)
			cmd.Stderr = os.Stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			kill := 50 + rand.IntN(300)
			lines := bufio.NewScanner(out)
			n := 0
			for lines.Scan() {
				if id := lines.Text(); len(id) == 26 { // the last line may be cut
					acknowledged[id] = true
				}
				if n++; n == kill {
					cmd.Process.Kill()
				}
			}
			cmd.Wait()
			if n < kill {
				t.Fatalf("the child ended by itself after %d jobs", n)
			}
		}
		s := open(t, dsn, Config{})
		for id := range acknowledged {
			j, err := s.Job(t.Context(), id)
			if err != nil {
				t.Fatalf("%v, although it was acknowledged", err)
			}
			if _, err := s.Job(t.Context(), j.DependsOn[0]); err != nil {
				t.Fatalf("half of a batch: %v", err)
			}
		}
		t.Logf("%d acknowledged", len(acknowledged))
	})
}

// A full disk refuses what finds no room, and heals.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("NOT TESTED ON A FULL DISK: mount a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(t.Context(), filepath.Join(dir, "waypoint.db"), Config{Fatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := &bench{t: t, Store: s, now: time.Now()}
	spec := run(func(s *wire.JobSpec) { s.Script = strings.Repeat("x", 100_000) })
	ballast := filepath.Join(dir, "ballast")
	for round := range 3 {
		var kept []string
		for i := 0; ; i++ {
			jobs, err := b.trySubmit(spec)
			if err != nil {
				want(t, err, wire.Unavailable, "no space left")
				break
			}
			kept = append(kept, jobs[0].ID)
			if i > 1000 {
				t.Fatal("the disk does not fill up")
			}
		}
		// A big one beside small ones: the small ones may get through, the big
		// one must not take the store with it.
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				err := s.Update(t.Context(), func(tx *Tx) error {
					if i == 0 {
						_, err := tx.Submit([]wire.JobSpec{spec}, time.Now())
						return err
					}
					return tx.PutSetting(fmt.Sprint(i), "x")
				})
				if err != nil && !isKind(err, wire.Unavailable) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, id := range kept {
			b.is(id, wire.Queued, "")
		}
		t.Logf("round %d: %d jobs found room", round, len(kept))
		// Room again: what was there before it filled up, or more of it.
		size := fmt.Sprintf("size=%dm", 8+4*round)
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, size); err != nil {
			t.Fatal(err)
		}
		b.one(spec)
		if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
			t.Log(err)
		}
	}
}
