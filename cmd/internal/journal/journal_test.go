package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"

	"golang.org/x/sys/unix"
)

// journald is the other end of the socket.
type journald struct {
	t    testing.TB
	path string
	conn *net.UnixConn
}

func newJournald(t testing.TB) *journald {
	j := &journald{t: t, path: filepath.Join(t.TempDir(), "socket")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: j.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	j.conn = conn
	return j
}

// log is a log of it. What it refuses goes to stderr.
func (j *journald) log(stderr io.Writer, level slog.Level) *slog.Logger {
	h, err := open(j.path, "waypoint-test", stderr, level)
	if err != nil {
		j.t.Fatal(err)
	}
	j.t.Cleanup(func() { h.to.socket.close() })
	return slog.New(h)
}

// record is a record as the journal keeps it: a field may be there several times.
type record map[string][]string

func (r record) one(t testing.TB, name string) string {
	t.Helper()
	if len(r[name]) != 1 {
		t.Fatalf("%s is there %d times in %q", name, len(r[name]), r)
	}
	return r[name][0]
}

// next is the next record.
func (j *journald) next() record {
	j.t.Helper()
	buf, oob := make([]byte, 1<<20), make([]byte, 1024)
	n, oobn, _, _, err := j.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		j.t.Fatal(err)
	}
	data := buf[:n]
	if oobn > 0 {
		data = j.file(oob[:oobn])
	}
	r, err := parse(data)
	if err != nil {
		j.t.Fatalf("%v in %q", err, data)
	}
	return r
}

// file reads what came as a descriptor, which must be sealed.
func (j *journald) file(oob []byte) []byte {
	j.t.Helper()
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		j.t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		j.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "record")
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL; err != nil || seals != want {
		j.t.Fatalf("seals are %x (%v), want %x", seals, err, want)
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	if err != nil {
		j.t.Fatal(err)
	}
	return data
}

// parse reads the native format, as strictly as journald does.
func parse(data []byte) (record, error) {
	r := record{}
	for len(data) > 0 {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			return nil, fmt.Errorf("a field without its end")
		}
		name, value, simple := strings.Cut(string(line), "=")
		if !simple {
			if len(rest) < 8 {
				return nil, fmt.Errorf("%s has no length", name)
			}
			n := binary.LittleEndian.Uint64(rest)
			if rest = rest[8:]; n > uint64(len(rest))-1 || rest[n] != '\n' {
				return nil, fmt.Errorf("%s has a wrong length", name)
			}
			value, rest = string(rest[:n]), rest[n+1:]
		}
		if name == "" || len(name) > 64 || name[0] == '_' || name[0] >= '0' && name[0] <= '9' ||
			strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			return nil, fmt.Errorf("%q is no name of a field", name)
		}
		r[name] = append(r[name], value)
		data = rest
	}
	return r, nil
}

// peer is a value with fields, as a session's peer is.
type peer struct{}

func (*peer) MarshalText() ([]byte, error) { return []byte("unix uid=7 pid=9"), nil }
func (*peer) LogFields() []slog.Attr       { return []slog.Attr{slog.Int("uid", 7), slog.Int("pid", 9)} }

func TestRecord(t *testing.T) {
	j := newJournald(t)
	log := j.log(t.Output(), slog.LevelInfo)
	log.With("runner", "r1").WithGroup("step").With("no", 2).Warn("job lost", "why", "a b", "took", 3*time.Second)
	r := j.next()
	for name, want := range map[string]string{
		"MESSAGE":  `job lost runner=r1 step.no=2 step.why="a b" step.took=3s`,
		"PRIORITY": "4", "SYSLOG_IDENTIFIER": "waypoint-test", "MESSAGE_ID": byText["job lost"].ID,
		"WAYPOINT_RUNNER": "r1", "WAYPOINT_STEP_NO": "2", "WAYPOINT_STEP_WHY": "a b", "WAYPOINT_STEP_TOOK": "3s",
	} {
		if got := r.one(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if len(r) != 8 {
		t.Errorf("%d fields, want 8: %q", len(r), r)
	}

	log.Info("runner connected", "peer", new(peer), slog.Group("at", "a-b.ü", 1), "", "x", "error", errors.New("one\nMESSAGE=two\n"))
	r = j.next()
	for name, want := range map[string]string{
		"MESSAGE":       `runner connected peer="unix uid=7 pid=9" at.a-b.ü=1 ""=x error="one\nMESSAGE=two\n"`,
		"WAYPOINT_PEER": "unix uid=7 pid=9", "WAYPOINT_PEER_UID": "7", "WAYPOINT_PEER_PID": "9",
		"WAYPOINT_AT_A_B__": "1", "WAYPOINT_": "x", "WAYPOINT_ERROR": "one\nMESSAGE=two\n",
	} {
		if got := r.one(t, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	log.Debug("not logged")
	log.Error("last", "peer", (*peer)(nil))
	if r = j.next(); r.one(t, "PRIORITY") != "3" || !strings.HasPrefix(r.one(t, "MESSAGE"), "last") || r["CODE_FILE"] != nil {
		t.Errorf("the last record is %q", r)
	}

	j.log(t.Output(), slog.LevelDebug).Debug("where")
	if r = j.next(); r.one(t, "PRIORITY") != "7" || filepath.Base(r.one(t, "CODE_FILE")) != "journal_test.go" || r.one(t, "CODE_LINE") == "0" {
		t.Errorf("a record at debug is %q", r)
	}
}

// slog's own rules: what the text shows of attributes and groups.
func TestSlog(t *testing.T) {
	j := newJournald(t)
	slogtest.Run(t, func(*testing.T) slog.Handler { return j.log(t.Output(), slog.LevelInfo).Handler() }, func(t *testing.T) map[string]any {
		r := j.next()
		message, _, _ := strings.Cut(r.one(t, "MESSAGE"), " ") // it is one word here
		got := map[string]any{slog.LevelKey: r.one(t, "PRIORITY"), slog.MessageKey: message}
		if !strings.HasSuffix(t.Name(), "/zero-time") {
			got[slog.TimeKey] = "the journal's own"
		}
		for name, values := range r {
			path, ours := strings.CutPrefix(name, "WAYPOINT_")
			if !ours {
				continue
			}
			// Its groups are G and H, all other keys are lower case.
			at, groups := got, strings.Split(path, "_")
			for _, g := range groups[:len(groups)-1] {
				if at[g] == nil {
					at[g] = map[string]any{}
				}
				at = at[g].(map[string]any)
			}
			at[strings.ToLower(groups[len(groups)-1])] = values[0]
		}
		return got
	})
}

// A record of any length arrives: those too long for a datagram in a file.
func TestLong(t *testing.T) {
	j := newJournald(t)
	log := j.log(t.Output(), slog.LevelInfo)
	for _, n := range []int{100, 10_000, 300_000, 20_000_000} {
		value := strings.Repeat("line\n", n/5)
		log.Info("long", "error", value)
		if got := j.next().one(t, "WAYPOINT_ERROR"); got != value {
			t.Errorf("of %d bytes %d have come", len(value), len(got))
		}
	}
}

func TestNoJournal(t *testing.T) {
	if _, err := open(filepath.Join(t.TempDir(), "none"), "x", t.Output(), slog.LevelInfo); !errors.Is(err, ErrNoJournal) {
		t.Errorf("error is %v", err)
	}
}

// What the journal refuses is on stderr, with its priority.
func TestRefused(t *testing.T) {
	j := newJournald(t)
	var stderr bytes.Buffer
	log := j.log(&stderr, slog.LevelInfo)
	j.conn.Close()
	log.Warn("job lost", "job", "J", "error", "a\nb")
	if got, want := stderr.String(), "<4>job lost job=J error=\"a\\nb\"\n"; got != want {
		t.Errorf("stderr has %q, want %q", got, want)
	}
}

// A journal that does not read holds nobody for long, and what was lost is
// counted. Stderr here is a socket that nobody reads either, as it is then.
func TestStuck(t *testing.T) {
	j := newJournald(t)
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	stderr, far := os.NewFile(uintptr(ends[0]), "stderr"), os.NewFile(uintptr(ends[1]), "far")
	defer stderr.Close()
	defer far.Close()
	h, err := open(j.path, "waypoint-test", stderr, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	defer h.to.socket.close()
	// Only the first one waits: if each did, this would take hours.
	log, value := slog.New(h), strings.Repeat("x", 2000)
	sent := 0
	for h.to.lost.Load() < 10_000 {
		log.Info("flood", "value", value)
		sent++
	}
	lost := h.to.lost.Load()
	if !h.to.socket.stuck.Load() {
		t.Error("it is not known that the journal is stuck")
	}
	var kept int
	if err := j.conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 1<<16); ; kept++ {
		if _, err := unread(j.conn, buf); err != nil {
			break
		}
	}
	if kept == 0 || int64(sent) < lost+int64(kept) {
		t.Errorf("%d sent, %d lost, %d kept", sent, lost, kept)
	}
	if err := j.conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	log.Info("it reads again")
	if r := j.next(); r.one(t, "WAYPOINT_COUNT") != fmt.Sprint(lost) || r.one(t, "PRIORITY") != "4" {
		t.Errorf("the loss is told as %q, want %d", r, lost)
	}
	if r := j.next(); r.one(t, "MESSAGE") != "it reads again" {
		t.Errorf("then comes %q", r)
	}
	if h.to.lost.Load() != 0 || h.to.socket.stuck.Load() {
		t.Error("it still counts as stuck")
	}
}

// unread reads what is there, without waiting.
func unread(conn *net.UnixConn, buf []byte) (n int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT) })
	return n, errors.Join(err, cerr)
}

// Many goroutines and derived logs at once do not mix their records.
func TestConcurrent(t *testing.T) {
	j := newJournald(t)
	log := j.log(t.Output(), slog.LevelInfo)
	const each, all = 200, 8
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			log := log.With("who", i)
			for n := range each {
				log.Info("line", "n", n)
			}
		})
	}
	next := make([]int, all)
	for range each * all {
		r := j.next()
		var who, n int
		if _, err := fmt.Sscanf(r.one(t, "WAYPOINT_WHO")+" "+r.one(t, "WAYPOINT_N"), "%d %d", &who, &n); err != nil {
			t.Fatal(err)
		}
		if next[who] != n || r.one(t, "MESSAGE") != fmt.Sprintf("line who=%d n=%d", who, n) {
			t.Fatalf("record %q of %d, want %d", r, who, next[who])
		}
		next[who]++
	}
	wg.Wait()
}

// Whatever keys and values are, the record is well-formed and each value
// arrives as it is, in one field.
func FuzzField(f *testing.F) {
	f.Add("job", "J", "group", "text")
	f.Add("", "a\nMESSAGE=b\n", "", "\n")
	f.Add("_é\x00=\n", "\x00\xff", strings.Repeat("g", 80), "")
	f.Add("9", "=", "PRIORITY=0\n", "<0>")
	f.Fuzz(func(t *testing.T, key, value, group, text string) {
		h := &Handler{prefix: "WAYPOINT_", text: slog.NewTextHandler(io.Discard, nil)}
		n := h.WithGroup(group).WithAttrs([]slog.Attr{slog.String(key, value)}).(*Handler)
		b := appendField(nil, "MESSAGE", text)
		b = append(b, n.fields...)
		b = appendAttr(b, n.prefix, slog.Group(group, slog.Any(key, errors.New(value))))
		r, err := parse(b)
		if err != nil {
			t.Fatalf("%v in %q", err, b)
		}
		if got := r.one(t, "MESSAGE"); got != text {
			t.Errorf("MESSAGE is %q, want %q", got, text)
		}
		delete(r, "MESSAGE")
		found := 0
		for _, values := range r {
			for _, v := range values {
				if v == value {
					found++
				}
			}
		}
		if all := len(slices.Concat(slices.Collect(valuesOf(r))...)); found != all || all != 2 {
			t.Errorf("%d of %d fields have the value, of %q", found, all, r)
		}
	})
}

func valuesOf(r record) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		for _, v := range r {
			if !yield(v) {
				return
			}
		}
	}
}

func BenchmarkHandle(b *testing.B) {
	j := newJournald(b)
	go func() {
		for buf := make([]byte, 1<<16); ; {
			if _, err := j.conn.Read(buf); err != nil {
				return
			}
		}
	}()
	log := j.log(io.Discard, slog.LevelInfo).With("runner", "r1")
	b.ReportAllocs()
	for b.Loop() {
		log.Info("job ended", "job", "01JD2M3N4P5Q6R7S8T9V0W1X2Y", "attempt", 1, "state", "success", "reason", "")
	}
}
