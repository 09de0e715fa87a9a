package supervisor

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/executor"
)

// Whatever a job makes in its directories is the supervisor's user's
// afterwards, and nothing outside of them has changed.
func TestFilesTakenBack(t *testing.T) {
	eachHost(t, func(t *testing.T, h *host) {
		outside := openDirectory(t)
		chown(t, outside, h.job)
		cache := filepath.Join(outside, "cache")
		if err := os.WriteFile(cache, []byte("cached"), 0o640); err != nil {
			t.Fatal(err)
		}
		chown(t, cache, h.job)
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		tool := filepath.Join(outside, "tool")
		if err := os.Link(exe, tool); err != nil {
			b, err := os.ReadFile(exe)
			if err == nil {
				err = os.WriteFile(tool, b, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		passwd := stat(t, "/etc/passwd")
		s := h.sh(t, `set -e
			echo private >private; chmod 600 private; echo none >none; chmod 0 none
			mkdir -p closed/in/side; echo x >closed/in/side/file; chmod 0 closed/in closed
			mkdir wide; chmod 2777 wide; echo x >wide/file
			ln -s /etc link; ln -s /etc/passwd file-link; ln -s nowhere dangling; ln -s . loop
			ln `+cache+` linked; echo x >one; ln one two; mkdir sub; ln one sub/three
			mkfifo pipe; cp /bin/true suid; chmod 6755 suid
			`+tool+` deep 3000
			for i in 1 2 3 4 5 6 7 8 9; do mkdir -p many/$i/$i; : >many/$i/file; done
			chmod 777 .; chmod 500 ../home; echo k=v >../output; chmod 0 ../output
			: >ready; read x <pipe`)
		h.file(t, s, "work/source", "source", 0o644)
		if err := os.Mkdir(filepath.Join(s.WorkDir, "tree"), 0o755); err != nil {
			t.Fatal(err)
		}
		chown(t, filepath.Join(s.WorkDir, "tree"), h.own)
		h.file(t, s, "work/tree/source", "source", 0o600)
		// Not the supervisor's: never handed over.
		if err := os.WriteFile(filepath.Join(s.WorkDir, "roots"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		start(t, h.jobs, s)
		work := func(name string) string { return filepath.Join(s.WorkDir, name) }
		await(t, "the job", func() bool { _, err := os.Stat(work("ready")); return err == nil })
		for _, name := range []string{".", "source", "tree", "tree/source"} {
			if got := stat(t, work(name)); int(got.Uid) != h.job.UID || int(got.Gid) != h.job.GID {
				t.Errorf("%s belongs to %d:%d while the job runs", name, got.Uid, got.Gid)
			}
		}
		// As by a program that is somebody else's: what it makes stays so, but
		// what the job has in there does not.
		if err := os.MkdirAll(work("sudo/closed"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(work("sudo/in"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		chown(t, work("sudo/in"), h.job)
		if err := os.Chmod(work("sudo/closed"), 0o700); err != nil {
			t.Fatal(err)
		}
		mounted := mount(t, outside, work("mounted"))
		if err := os.WriteFile(work("pipe"), []byte("go on\n"), 0); err != nil {
			t.Fatal(err)
		}
		if end := ended(t, h.jobs, s.JobRef); end.State != wire.Success {
			t.Fatalf("got %+v: %s", end, logOf(t, s, 0))
		}

		own, job := h.own.UID, h.job.UID
		for name, want := range map[string]struct {
			uid  int
			mode uint32 // 0: any
		}{
			".":                   {own, 0o777},
			"../home":             {own, 0o700}, // searchable for us
			"../output":           {own, 0},
			"private":             {own, 0o600},
			"none":                {own, 0},
			"closed":              {own, 0o700},
			"closed/in":           {own, 0o700},
			"closed/in/side/file": {own, 0o644},
			"wide":                {own, 0o2777},
			"wide/file":           {own, 0},
			"link":                {own, 0},
			"dangling":            {own, 0},
			"one":                 {own, 0}, // all of its names were in there
			"sub/three":           {own, 0},
			"linked":              {job, 0o640}, // has a name outside
			"pipe":                {own, 0},
			"suid":                {own, 0o755},
			"d/d/d/d/f":           {own, 0},
			"many/9/9":            {own, 0o755},
			"source":              {own, 0o644},
			"tree/source":         {own, 0o600},
			"roots":               {0, 0o600},
			"sudo":                {0, 0o755},
			"sudo/closed":         {0, 0o700},
			"sudo/in":             {own, 0o644},
			"../assignment.json":  {own, 0o600},
			"../../" + SocketFile: {own, 0o600},
		} {
			got := stat(t, work(name))
			if int(got.Uid) != want.uid || want.mode != 0 && got.Mode&0o7777 != want.mode {
				t.Errorf("%s belongs to %d and has mode %o, want %d and %o", name, got.Uid, got.Mode&0o7777, want.uid, want.mode)
			}
		}
		if depth := checkDeep(t, s.WorkDir, own); depth != 3000 {
			t.Errorf("%d levels of the deep tree", depth)
		}
		if got := stat(t, cache); int(got.Uid) != job {
			t.Errorf("a file outside belongs to %d", got.Uid)
		}
		if got := stat(t, "/etc/passwd"); got.Uid != passwd.Uid || got.Mode != passwd.Mode || got.Ctim != passwd.Ctim {
			t.Error("/etc/passwd has changed")
		}
		if got := stat(t, outside); int(got.Uid) != job {
			t.Errorf("what was mounted (%v) belongs to %d", mounted, got.Uid)
		}
		if info, err := os.Stat(s.Dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
			t.Errorf("the attempt's directory is %v, %v", info.Mode(), err)
		}
	})
}

// mount shows a directory at another place, where that can be done here.
func mount(t *testing.T, from, to string) bool {
	t.Helper()
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Logf("nothing can be mounted here: %v", err)
		return false
	}
	t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
	return true
}

// checkDeep goes down a tree of directories "d" with a file "f" in each, and
// says how deep it is.
func checkDeep(t *testing.T, dir string, uid int) (depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	for ; err == nil; depth++ {
		for _, name := range []string{"d", "f"} {
			var st unix.Stat_t
			if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && int(st.Uid) != uid {
				t.Fatalf("at level %d %s belongs to %d", depth, name, st.Uid)
			}
		}
		var down int
		down, err = unix.Openat(fd, "d", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		fd = down
	}
	return depth - 1
}

// While files are taken back others of the jobs' user move and exchange them.
// Nothing changes that was not that user's.
func TestTakeBackAmongMovers(t *testing.T) {
	_, job := testUsers(t)
	base := openDirectory(t)
	precious := filepath.Join(base, "precious")
	const other = 2 // neither ours nor the jobs'
	if err := os.Mkdir(precious, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		path := filepath.Join(precious, strconv.Itoa(i))
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, other, other); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(precious, other, other); err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(base, "away")
	if err := os.Mkdir(away, 0o777); err != nil {
		t.Fatal(err)
	}
	for round := range 30 {
		dir := filepath.Join(base, "attempt"+strconv.Itoa(round))
		var dirs []string
		for a := range 6 {
			for b := range 6 {
				dirs = append(dirs, filepath.Join(dir, "work", strconv.Itoa(a), strconv.Itoa(b)))
			}
		}
		for _, d := range dirs {
			if err := os.MkdirAll(d, 0o777); err != nil {
				t.Fatal(err)
			}
			for i := range 4 {
				if err := os.WriteFile(filepath.Join(d, strconv.Itoa(i)), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		os.Chmod(dir, 0o700)
		if err := handOver(dir, []string{"work"}, job, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		quit := make(chan struct{})
		var movers sync.WaitGroup
		for range 3 {
			movers.Go(func() {
				for {
					select {
					case <-quit:
						return
					default:
					}
					d := dirs[rand.IntN(len(dirs))]
					out := filepath.Join(away, strconv.Itoa(rand.IntN(1000)))
					switch rand.IntN(4) {
					case 0: // away and back
						if os.Rename(d, out) == nil {
							os.Rename(out, d)
						}
					case 1: // a link instead
						if os.Rename(d, out) == nil {
							os.Symlink(precious, d)
							os.Remove(d)
							os.Rename(out, d)
						}
					case 2: // somebody else's instead
						unix.Renameat2(unix.AT_FDCWD, d, unix.AT_FDCWD, precious, unix.RENAME_EXCHANGE)
						unix.Renameat2(unix.AT_FDCWD, d, unix.AT_FDCWD, precious, unix.RENAME_EXCHANGE)
					case 3: // somebody else's file as well
						l := filepath.Join(d, "linked")
						os.Link(filepath.Join(precious, "3"), l)
						os.Remove(l)
					}
				}
			})
		}
		err := takeBack(dir, job, nil)
		close(quit)
		movers.Wait()
		if err != nil && !strings.Contains(err.Error(), errMoved.Error()) {
			t.Error(err)
		}
		// Once it is quiet all of it is there.
		if err := takeBack(dir, job, nil); err != nil {
			t.Error(err)
		}
		filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err != nil || unix.Lstat(path, &st) != nil {
				t.Errorf("%s: %v", path, err)
			} else if int(st.Uid) != os.Getuid() && st.Uid != other && (e.IsDir() || st.Nlink == 1) {
				// One of several links is not ours to take: movers may have left another where they went.
				t.Errorf("%s belongs to %d", path, st.Uid)
			}
			return nil
		})
	}
	theirs := map[uint64]bool{} // by inode: movers may have left a second link to one
	filepath.WalkDir(base, func(path string, e fs.DirEntry, err error) error {
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil && st.Uid == other {
			theirs[st.Ino] = true
		}
		return nil
	})
	if len(theirs) != 21 {
		t.Errorf("%d files belong to the other user, want 21", len(theirs))
	}
}

// A large tree takes its time, and no other job's.
func TestLargeTreeBesideOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 20,000 files")
	}
	own, job := testUsers(t)
	h := &host{dir: openDirectory(t), kind: executor.IsolationProcessGroup, own: own, job: job}
	chown(t, h.dir, own)
	h.start(t)
	large := h.sh(t, "echo on")
	for d := range 200 {
		dir := filepath.Join(large.WorkDir, strconv.Itoa(d))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		chown(t, dir, h.own)
		for f := range 100 {
			h.file(t, large, "work/"+strconv.Itoa(d)+"/"+strconv.Itoa(f), "", 0o644)
		}
	}
	last := filepath.Join(large.WorkDir, "199/99")
	// The machine may be busy with something else at the wrong moment; were a
	// short job made to wait, it would be each time.
	waited := 0
	for ; waited < 5; waited++ {
		start(t, h.jobs, large)
		if end := run(t, h.jobs, h.sh(t, "true")); end.State != wire.Success {
			t.Fatalf("got %+v", end)
		}
		if list, err := h.jobs.List(t.Context()); err != nil || list[0].JobRef != large.JobRef {
			t.Fatalf("held are %+v, %v", list, err)
		} else if list[0].End == nil {
			break
		}
		if err := h.jobs.Forget(t.Context(), large.JobRef); err != nil {
			t.Fatal(err)
		}
		Recycle(large.Dir)
	}
	if waited == 5 {
		t.Fatal("a short job has to wait until 20,000 files are handed over and taken back")
	}
	// A stop in the midst of it leaves nothing behind.
	if err := h.jobs.Stop(t.Context(), large.JobRef, true); err != nil {
		t.Fatal(err)
	}
	if end := ended(t, h.jobs, large.JobRef); end.State != wire.Canceled && end.State != wire.Success {
		t.Errorf("got %+v", end)
	}
	h.checkOurs(t, large)
	if got := stat(t, last); int(got.Uid) != h.own.UID {
		t.Errorf("a file belongs to %d", got.Uid)
	}
}

// BenchmarkCustody is what it costs to hand over and take back what a job of
// no source has.
func BenchmarkCustody(b *testing.B) {
	_, job := testUsers(b)
	dir := b.TempDir()
	for _, d := range []string{"work", "home", "home/tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			b.Fatal(err)
		}
	}
	for _, f := range []string{"output", "log", "process", "assignment.json"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if err := handOver(dir, []string{"work", "home", "output"}, job, func() error { return nil }); err != nil {
			b.Fatal(err)
		}
		if err := takeBack(dir, job, nil); err != nil {
			b.Fatal(err)
		}
	}
}
