package statedir

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// soon is how long a change may take to be noticed.
const soon = 2 * time.Second

// watcher is a WatchToken of a test.
type watcher struct {
	t     *testing.T
	d     *Dir
	texts chan string      // what Token says at each call of changed, or its error
	log   *strings.Builder // read it behind stop
	stop  func()           // and it leaves nothing behind

	worst time.Duration
}

// watching starts one, which knows what is there now unless Token was called
// before; the end of the test stops it.
func watching(t *testing.T, d *Dir, tune func(w *watch)) *watcher {
	t.Helper()
	if d.token == nil {
		d.Token()
	}
	ws := &watcher{t: t, d: d, texts: make(chan string, 1000), log: &strings.Builder{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	changed := func() {
		tok, err := d.Token()
		if err != nil {
			tok.Text = err.Error()
		}
		ws.texts <- tok.Text
	}
	d.Log = slog.New(slog.NewTextHandler(ws.log, nil))
	wg.Go(func() {
		if tune == nil {
			if err := d.WatchToken(ctx, changed); err != nil {
				t.Errorf("watch: %v", err)
			}
			return
		}
		w := &watch{d: d, log: d.Log, slow: slowPoll, fast: fastPoll}
		tune(w)
		w.run(ctx, changed)
	})
	ws.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		// Its last goroutine may have one instruction to go.
		buf := make([]byte, 1<<20)
		stacks := func() string { return string(buf[:runtime.Stack(buf, true)]) }
		for limit := time.Now().Add(soon); strings.Contains(stacks(), "fsnotify."); runtime.Gosched() {
			if time.Now().After(limit) {
				t.Errorf("the watch has left goroutines:\n%s", stacks())
				break
			}
		}
		if n := inotifies(t); n != 0 {
			t.Errorf("the watch has left %d inotify descriptors", n)
		}
	})
	t.Cleanup(ws.stop)
	return ws
}

// inotifies counts this process's inotify descriptors.
func inotifies(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.Contains(to, "inotify") {
			n++
		}
	}
	return n
}

// next waits until the change to want has been noticed.
func (w *watcher) next(want string) {
	w.t.Helper()
	w.nextWith(func(s string) bool { return s == want }, want)
}

func (w *watcher) nextWith(ok func(string) bool, want string) {
	w.t.Helper()
	begin := time.Now()
	limit := time.After(soon)
	var others []string
	for {
		select {
		case got := <-w.texts:
			if ok(got) {
				w.worst = max(w.worst, time.Since(begin))
				return
			}
			others = append(others, got)
		case <-limit:
			w.stop()
			w.t.Fatalf("%q is not noticed within %s; noticed %q; log: %s", want, soon, others, w.log)
		}
	}
}

// script runs a program that replaces something.
func script(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TERM=dumb")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// TestWatchReplaced replaces the file 50 times, in each of the ways that
// people have.
func TestWatchReplaced(t *testing.T) {
	d := open(t)
	put(t, d.Path(tokenFile), "first\n", 0o600)
	base := filepath.Dir(d.Path())
	w := watching(t, d, nil)
	ways := []struct {
		name string
		need string // program
		do   func(text string)
	}{
		{"mv", "mv", func(text string) {
			put(t, filepath.Join(base, "new"), text, 0o600)
			script(t, base, "mv", "-f", "new", d.Path(tokenFile))
		}},
		{"cp", "cp", func(text string) {
			put(t, filepath.Join(base, "new"), text, 0o600)
			script(t, base, "cp", "new", d.Path(tokenFile))
		}},
		{"link", "ln", func(text string) {
			put(t, filepath.Join(base, text), text, 0o600)
			script(t, base, "ln", "-s", "../"+text, "link")
			script(t, base, "mv", "-T", "link", d.Path(tokenFile))
		}},
		{"echo", "sh", func(text string) {
			script(t, d.Path(), "sh", "-c", "rm token; echo "+text+" > token; echo "+text+" > token")
		}},
		{"ed", "ed", func(text string) {
			script(t, d.Path(), "sh", "-c", `printf '%s\n' ,d a "$1" . w q | ed -s token`, "sh", text)
		}},
		{"vim", "vim", func(text string) {
			script(t, d.Path(), "vim", "-u", "NONE", "-es", "-c", "set backup writebackup backupcopy=no", "-c", "%s/.*/"+text+"/", "-c", "wq", "token")
		}},
		{"ours", "sh", func(text string) {
			if err := d.WriteToken(text); err != nil {
				t.Fatal(err)
			}
		}},
	}
	tried := map[string]int{}
	for i := range 50 {
		way := ways[i%len(ways)]
		if _, err := exec.LookPath(way.need); err != nil {
			t.Logf("SKIPPED: %s is not installed", way.need)
			continue
		}
		text := fmt.Sprintf("%s-%d", way.name, i)
		way.do(text)
		w.next(text)
		tried[way.name]++
	}
	t.Logf("noticed within %s at worst; %v", w.worst.Round(time.Millisecond), tried)
}

// TestWatchSecrets switches what Kubernetes mounts for a secret.
func TestWatchSecrets(t *testing.T) {
	d := open(t)
	secrets := filepath.Join(t.TempDir(), "secrets")
	version := func(i int, text string) {
		t.Helper()
		name := fmt.Sprintf("..2024_%d", i)
		if err := os.MkdirAll(filepath.Join(secrets, name), 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(secrets, name, "waypoint"), text, 0o600)
		script(t, secrets, "ln", "-s", name, "..data_tmp")
		script(t, secrets, "mv", "-T", "..data_tmp", "..data")
		os.RemoveAll(filepath.Join(secrets, fmt.Sprintf("..2024_%d", i-1)))
	}
	if err := os.Symlink(filepath.Join(secrets, "waypoint"), d.Path(tokenFile)); err != nil {
		t.Fatal(err)
	}
	w := watching(t, d, nil)
	version(0, "zero") // nothing of it was there before
	if err := os.Symlink("..data/waypoint", filepath.Join(secrets, "waypoint")); err != nil {
		t.Fatal(err)
	}
	w.next("zero")
	for i := range 10 {
		text := fmt.Sprintf("text-%d", i+1)
		version(i+1, text)
		w.next(text)
	}
	put(t, filepath.Join(secrets, "..data", "waypoint"), "in place", 0o600)
	w.next("in place")
	if n := inotifies(t); n != 1 {
		t.Errorf("there are %d inotify descriptors", n)
	}
}

// TestWatchDirectory takes the state directory itself away, and more.
func TestWatchDirectory(t *testing.T) {
	d := open(t)
	if err := d.Lock("a test"); err != nil { // holds the directory's inode
		t.Fatal(err)
	}
	base := filepath.Dir(filepath.Dir(d.Path()))
	// What is renamed above the directory while the token is there is left to
	// the slow poll, which is not so slow here.
	w := watching(t, d, func(w *watch) { w.slow = time.Second })
	put(t, d.Path(tokenFile), "one", 0o600)
	w.next("one")
	for i, step := range []struct{ script, want string }{
		{"rm a/b/*", ""},
		{"rmdir a/b && mkdir a/b && echo again > a/b/token", "again"},
		{"rm -r a/b", ""},
		{"mkdir a/b && echo two > a/b/token", "two"},
		{"mkdir c && echo three > c/token && mv a/b a/old && mv c a/b", "three"},
		{"chmod 600 a/b/token && mv a old", ""},
		{"mkdir -p a/b && echo four > a/b/token", "four"},
		{"echo five > a/b/token", "five"},
		{"rm -r a", ""},
		{"mkdir n && echo six > n/token && mkdir a && ln -s ../n a/b", "six"},
		{"mkdir m && echo seven > m/token && ln -s ../m l && mv -T l a/b", "seven"},
		{"rm m/token", ""},
		{"mv n/token m/token", "six"},
	} {
		script(t, base, "sh", "-ec", step.script)
		w.next(step.want)
		t.Logf("step %d: %q is noticed", i, step.want)
	}
}

// TestWatchProblems is told of a file that cannot be used, and of its mode.
func TestWatchProblems(t *testing.T) {
	d := open(t)
	w := watching(t, d, nil)
	put(t, d.Path(tokenFile), "one", 0o600)
	w.next("one")
	if err := os.Chmod(d.Path(tokenFile), 0o644); err != nil {
		t.Fatal(err)
	}
	w.next("one") // and Token has repaired it
	if fi, _ := os.Stat(d.Path(tokenFile)); fi.Mode().Perm() != 0o600 {
		t.Errorf("the mode is %o", fi.Mode().Perm())
	}
	if err := os.Remove(d.Path(tokenFile)); err != nil {
		t.Fatal(err)
	}
	w.next("")
	if err := unix.Mkfifo(d.Path(tokenFile), 0o600); err != nil {
		t.Fatal(err)
	}
	w.nextWith(func(s string) bool { return strings.Contains(s, "a named pipe") }, "a named pipe")
	put(t, d.Path("new"), "one", 0o600)
	if err := os.Rename(d.Path("new"), d.Path(tokenFile)); err != nil {
		t.Fatal(err)
	}
	w.next("one")
	w.stop()
	if w.log.Len() != 0 {
		t.Errorf("the log says: %s", w.log)
	}
	if len(w.texts) != 0 {
		t.Errorf("there were calls without a change: %q", <-w.texts)
	}
}

// TestWatchBegins is told of what happened between the last Token and the
// beginning of the watch, and only of that.
func TestWatchBegins(t *testing.T) {
	d := open(t)
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	put(t, d.Path(tokenFile), "before", 0o600)
	w := watching(t, d, nil)
	w.next("before")
	w.stop()
	w = watching(t, d, nil)
	put(t, d.Path(tokenFile), "behind", 0o600)
	w.nextWith(func(s string) bool {
		if s != "behind" {
			t.Errorf("told of %q, which it knew", s)
		}
		return true
	}, "behind")
}

// TestWatchPolls sees what the kernel does not report: the renaming of a
// directory above.
func TestWatchPolls(t *testing.T) {
	d := open(t)
	base := t.TempDir()
	script(t, base, "sh", "-c", "mkdir -p a/b/c/d z/b/c/d; echo one > a/b/c/d/t; echo two > z/b/c/d/t")
	if err := os.Symlink(filepath.Join(base, "a/b/c/d/t"), d.Path(tokenFile)); err != nil {
		t.Fatal(err)
	}
	w := watching(t, d, func(w *watch) { w.slow = 10 * time.Millisecond })
	script(t, base, "sh", "-c", "mv a old; mv z a")
	w.next("two")
	script(t, base, "sh", "-c", "echo three > a/b/c/d/t") // in the directory that is there now
	w.next("three")
}

// TestWatchDegrades watches where it must not, or cannot any more, as another
// user in another process.
func TestWatchDegrades(t *testing.T) {
	for _, how := range []string{"unreadable", "exhausted"} {
		t.Run(how, func(t *testing.T) {
			if how == "exhausted" && os.Geteuid() != 0 {
				t.Skip("SKIPPED: without root it would use up the inotify instances of whoever runs the test")
			}
			d := open(t)
			put(t, d.Path(tokenFile), "one", 0o600)
			cmd := self(t, "watch", d.Path(), how)
			if os.Geteuid() == 0 {
				for p := d.Path(); p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
					if err := os.Chmod(p, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				const uid = 65533 // nobody else's
				for _, p := range []string{d.Path(), d.Path(tokenFile)} {
					if err := os.Chown(p, uid, uid); err != nil {
						t.Fatal(err)
					}
				}
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			}
			if how == "unreadable" {
				if err := os.Chmod(d.Path(), 0o300); err != nil {
					t.Fatal(err)
				}
				defer os.Chmod(d.Path(), 0o700)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			lines := bufio.NewScanner(stdout)
			await := func(text string) {
				t.Helper()
				for lines.Scan() {
					if strings.Contains(lines.Text(), text) {
						return
					}
				}
				t.Fatalf("the other process does not say %q", text)
			}
			await("token file cannot be watched")
			put(t, d.Path("token"), "two", 0o600) // in place
			await("noticed two")
			if how == "unreadable" {
				if err := os.Chmod(d.Path(), 0o700); err != nil {
					t.Fatal(err)
				}
			} else if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil { // gives them back
				t.Fatal(err)
			}
			await("token file is watched again")
		})
	}
}

// watchChild is the other process of TestWatchDegrades.
func watchChild(dir, how string) int {
	if how == "exhausted" {
		var taken []int
		for {
			fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
			if err != nil {
				break
			}
			taken = append(taken, fd)
		}
		enough := make(chan os.Signal, 1)
		signal.Notify(enough, syscall.SIGUSR1)
		go func() {
			<-enough
			for _, fd := range taken {
				unix.Close(fd)
			}
		}()
	}
	d := &Dir{path: dir, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))}
	w := &watch{d: d, log: d.Log, slow: slowPoll, fast: 50 * time.Millisecond}
	w.run(context.Background(), func() {
		tok, err := d.Token()
		fmt.Println("noticed", tok.Text, err)
	})
	return 0
}

// TestSettle holds when a burst of events is looked at.
func TestSettle(t *testing.T) {
	var u unrest
	begin := time.Unix(1000, 0)
	for _, test := range []struct{ at, want time.Duration }{
		{0, 100}, {50, 100}, {300, 100}, {400, 100}, {450, 50}, {500, 0}, {700, 0},
	} {
		if got := u.add(begin.Add(test.at * time.Millisecond)); got != test.want*time.Millisecond {
			t.Errorf("event %d ms behind the first: waits %s more, want %d ms", test.at, got, test.want)
		}
	}
}
