package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestPeerOf(t *testing.T) {
	for _, tt := range []struct {
		peer        mux.Peer
		name, group string
	}{
		{mux.Peer{Network: "unix", UID: 7}, "uid 7", "uid 7"},
		{mux.Peer{Network: "memory", UID: 0}, "uid 0", "uid 0"},
		{mux.Peer{Network: "tcp", Addr: "192.0.2.1:4711", UID: -1}, "192.0.2.1", "192.0.2.1"},
		{mux.Peer{Network: "tcp", Addr: "[::ffff:192.0.2.1]:4711", UID: -1}, "192.0.2.1", "192.0.2.1"},
		{mux.Peer{Network: "tcp", Addr: "[2001:db8:1:2:3:4:5:6]:4711", UID: -1}, "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		{mux.Peer{Network: "tcp", Addr: "[fe80::1%eth0]:4711", UID: -1}, "fe80::1", "fe80::/64"},
	} {
		if name, group := peerOf(&tt.peer); name != tt.name || group != tt.group {
			t.Errorf("%+v: %q, %q", tt.peer, name, group)
		}
	}
}

// Runners that wait for adoption are forgotten a day after they were last seen;
// those that are connected, and all that were admitted or rejected, are not.
func TestPendingRunnersAreForgotten(t *testing.T) {
	s, err := New(t.Context(), Config{StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	now := time.Now()
	put := func(id string, state wire.RunnerState, seen time.Duration) {
		t.Helper()
		if err := s.update(func(tx *store.Tx) error {
			return tx.PutRunner(store.RunnerRecord{Runner: wire.Runner{ID: id, Kind: wire.KindRemote, State: state, LastSeen: now.Add(-seen)}})
		}); err != nil {
			t.Fatal(err)
		}
	}
	put("recent", wire.Pending, 23*time.Hour)
	put("old", wire.Pending, 25*time.Hour)
	put("connected", wire.Pending, 48*time.Hour)
	put("adopted", wire.Adopted, 1000*time.Hour)
	put("preadopted", wire.Preadopted, 1000*time.Hour)
	put("rejected", wire.Rejected, 1000*time.Hour)
	m := newcomer("connected", wire.Pending)
	m.kind = wire.KindRemote
	s.fleet.join(m)
	if err := s.prunePending(now); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]wire.Kind{"recent": "", "old": wire.NotFound, "connected": "", "adopted": "", "preadopted": "", "rejected": ""} {
		if _, err := s.store.Runner(context.Background(), id); wire.KindOf(err) != want {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.buf.Bytes(), []byte(text))
}

// A runner that comes again and again with the same costs no commit and no line
// in the log.
func TestReconnectIsCheap(t *testing.T) {
	dir, log := t.TempDir(), &lines{}
	s, err := New(t.Context(), Config{StateDir: dir, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	arrive := func(problem string) {
		t.Helper()
		v := &visitor{
			id: "r1", kind: wire.KindRemote, key: "SHA256:k", peer: &mux.Peer{Key: []byte("k")}, peerName: "uid 7", peerGroup: "uid 7",
			hello: wire.RunnerHello{Labels: map[string]string{"a": "b"}, Hostname: "h"}, ended: make(chan struct{}),
		}
		judged, err := s.judge(t.Context(), v, []wire.TokenOffer{{Source: wire.SourceFile, Token: problem}})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.arrive(t.Context(), v, judged, ""); err != nil {
			t.Fatal(err)
		}
	}
	written := func() string {
		t.Helper()
		info, err := os.Stat(filepath.Join(dir, "waypoint.db-wal"))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(info.ModTime().UnixNano(), info.Size())
	}
	arrive("x")
	before := written()
	for range 20 {
		arrive("x")
	}
	if written() != before {
		t.Error("something was written")
	}
	if n := log.count("runner pending"); n != 1 {
		t.Errorf("%d lines for one standing", n)
	}
	arrive("wprun_x")
	if written() == before {
		t.Error("nothing was written: this test cannot tell")
	}
	if n := log.count("runner pending"); n != 2 {
		t.Errorf("%d lines for two standings", n)
	}
}

// What a runner says of its host is kept as it can be shown, so that saying the
// same again changes nothing.
func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		"web-1.example": "web-1.example", "a\x00b\x1b[31m\n": "a?b?[31m?", "\xff\xfe": "?", "żółw": "żółw", "": "",
		strings.Repeat("é", 200): strings.Repeat("é", 127),
	} {
		if got := plain(text); got != want || plain(got) != got {
			t.Errorf("plain(%q) = %q, want %q", text, got, want)
		}
	}
}
