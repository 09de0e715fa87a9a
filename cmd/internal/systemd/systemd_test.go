package systemd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// manager is a service manager that hears what is said to it.
func manager(t *testing.T) (hear func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		buf := make([]byte, 200)
		n, err := conn.Read(buf)
		if err != nil {
			t.Error(err)
		}
		return string(buf[:n])
	}
}

func TestNotify(t *testing.T) {
	hear := manager(t)
	for want, say := range map[string]func() error{
		"READY=1":                                Ready,
		"STOPPING=1":                             Stopping,
		`RELOADING=1\nMONOTONIC_USEC=[1-9]\d+\n`: Reloading,
		`EXTEND_TIMEOUT_USEC=90000000`:           func() error { return Extend(90 * time.Second) },
		`STATUS=3 jobs\.`:                        func() error { return Status("3 jobs.") },
	} {
		if err := say(); err != nil {
			t.Fatal(err)
		}
		if got := hear(); !regexp.MustCompile("^" + want + "$").MatchString(got) {
			t.Errorf("said %q, want %q", got, want)
		}
	}
}

// Extending goes on until it is stopped, and then says nothing more.
func TestExtending(t *testing.T) {
	hear := manager(t)
	stop := Extending(3 * time.Millisecond)
	for range 3 {
		if got := hear(); got != "EXTEND_TIMEOUT_USEC=3000" {
			t.Errorf("said %q", got)
		}
	}
	stop()
	if err := Status("last"); err != nil {
		t.Fatal(err)
	}
	for hear() != "STATUS=last" {
	}
}

func TestNobodyThere(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Ready(); err != nil {
		t.Errorf("Ready without a service manager: %v", err)
	}
	t.Setenv("LISTEN_PID", "")
	t.Setenv("LISTEN_FDS", "")
	if ls, err := Listeners(); err != nil || len(ls) != 0 {
		t.Errorf("Listeners without a service manager: %v, %v", ls, err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if path := Credential("x"); path != "" {
		t.Errorf("Credential without a service manager: %q", path)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	if err := Ready(); err == nil {
		t.Error("Ready over a socket that is not there succeeded")
	}
	Extending(time.Hour)() // ends by itself and by stop
}

func TestCredential(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	want := filepath.Join(dir, "waypoint_tls.crt")
	if err := os.WriteFile(want, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if got := Credential("waypoint_tls.crt"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Credential("waypoint_tls.key"); got != "" {
		t.Errorf("%q of a credential that was not handed over", got)
	}
}

// lines is a log whose lines can be waited for.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(bytes.TrimSpace(p))
	return len(p), nil
}

func watch(t *testing.T, interval time.Duration, probe func(context.Context) error) lines {
	t.Helper()
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(interval.Microseconds(), 10))
	log := make(lines, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { Watchdog(ctx, probe, slog.New(slog.NewTextHandler(log, nil))) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return log
}

// A ping follows each probe that has passed and no other, and the log says
// once that they fail and once that they pass.
func TestWatchdog(t *testing.T) {
	hear := manager(t)
	var broken atomic.Bool
	probed := make(chan bool, 1000)
	log := watch(t, 200*time.Millisecond, func(context.Context) error {
		defer func() { probed <- true }()
		if broken.Load() {
			return errors.New("no commit")
		}
		return nil
	})
	for range 2 {
		if got := hear(); got != "WATCHDOG=1" {
			t.Errorf("said %q", got)
		}
	}
	broken.Store(true)
	if line := <-log; !strings.Contains(line, "level=ERROR") {
		t.Errorf("log: %s", line)
	}
	silent(t, hear, func() {
		for range 3 {
			<-probed
		}
	})
	broken.Store(false)
	if line := <-log; !strings.Contains(line, "passes") {
		t.Errorf("log: %s", line)
	}
	if got := hear(); got != "WATCHDOG=1" {
		t.Errorf("said %q", got)
	}
}

// A probe that does not return is as bad as one that fails, and is said
// although it does not return.
func TestWatchdogOfAHungProbe(t *testing.T) {
	hear := manager(t)
	hung := make(chan bool)
	log := watch(t, 20*time.Millisecond, func(context.Context) error { <-hung; return nil })
	if line := <-log; !strings.Contains(line, "no answer within 5ms") {
		t.Errorf("log: %s", line)
	}
	silent(t, hear, func() { hung <- true }) // it came too late to count
	close(hung)
	if line := <-log; !strings.Contains(line, "passes") {
		t.Errorf("log: %s", line)
	}
	if got := hear(); got != "WATCHDOG=1" {
		t.Errorf("said %q", got)
	}
}

// silent fails if anything is said while f runs, but for what was on its way.
func silent(t *testing.T, hear func() string, f func()) {
	t.Helper()
	Status("from here")
	for hear() != "STATUS=from here" {
	}
	f()
	Status("to here")
	if got := hear(); got != "STATUS=to here" {
		t.Errorf("said %q", got)
	}
}

func TestNobodyWatches(t *testing.T) {
	for _, env := range [][2]string{{"", ""}, {"1000000", "1"}} {
		t.Setenv("WATCHDOG_USEC", env[0])
		t.Setenv("WATCHDOG_PID", env[1])
		Watchdog(t.Context(), func(context.Context) error {
			t.Error("probe where nobody watches")
			return nil
		}, slog.New(slog.DiscardHandler))
	}
}
