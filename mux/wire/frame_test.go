package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file that older builds have written: a difference
// is a change of the protocol.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs:\ngot  %s\nwant %s", path, got, want)
	}
}

var when = time.Date(2026, 11, 21, 12, 34, 56, 789_012_000, time.UTC)

// goldenFrames are one of each kind, with the hexadecimal bytes they must be.
func goldenFrames(t testing.TB) (names []string, frames [][]byte) {
	add := func(name string, b []byte, err error) {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		names, frames = append(names, name), append(frames, b)
	}
	msg := func(kind FrameType, v any) ([]byte, error) {
		payload, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		return AppendFrame(nil, kind, payload)
	}
	for _, f := range []struct {
		name string
		kind FrameType
		v    any
	}{
		{"call", FrameCall, Call{Method: MethodJobGet, Timeout: 30000, Body: json.RawMessage(`{"id":"01J"}`)}},
		{"call without deadline or body", FrameCall, Call{Method: MethodPing}},
		{"message", FrameMsg, JobRequest{ID: "01J"}},
		{"success", FrameStatus, Error{}},
		{"error", FrameStatus, Error{Kind: NotFound, Message: "job 01J does not exist", Hint: "list jobs"}},
	} {
		b, err := msg(f.kind, f.v)
		add(f.name, b, err)
	}
	b, err := AppendData(nil, Data{Offset: 0x0102030405060708, Time: when, Stream: Stderr, Bytes: []byte("hello\n")})
	add("data", b, err)
	b, err = AppendData(nil, Data{})
	add("data of nothing", b, err)
	b, err = AppendFrame(nil, FrameEnd, nil)
	add("end", b, err)
	return names, frames
}

func TestGoldenFrames(t *testing.T) {
	names, frames := goldenFrames(t)
	var got bytes.Buffer
	for i, b := range frames {
		fmt.Fprintf(&got, "%s: %x\n", names[i], b)
	}
	golden(t, "frames.txt", got.Bytes())
}

func TestReaderReadsWhatIsWritten(t *testing.T) {
	names, frames := goldenFrames(t)
	stream := bytes.Join(frames, nil)
	for how, r := range map[string]io.Reader{
		"at once": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
		"with its end": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		rd := NewReader(r, 0)
		for i, want := range frames {
			kind, payload, err := rd.Next()
			if err != nil || kind != FrameType(want[0]) || !bytes.Equal(payload, want[4:]) {
				t.Fatalf("%s, %s: got %s %q, %v", how, names[i], kind, payload, err)
			}
		}
		if _, _, err := rd.Next(); !errors.Is(err, io.EOF) {
			t.Fatalf("%s: at the end: %v", how, err)
		}
	}
}

func TestDataRoundTrip(t *testing.T) {
	for _, d := range []Data{
		{}, {Offset: 1<<63 - 1, Stream: 255, Time: when, Bytes: make([]byte, MaxData)}, {Time: time.UnixMicro(-1).UTC(), Bytes: []byte{0}},
	} {
		b, err := AppendData([]byte("before"), d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseData(b[len("before")+headerSize:])
		if err != nil || got.Offset != d.Offset || got.Stream != d.Stream || !got.Time.Equal(d.Time) || !bytes.Equal(got.Bytes, d.Bytes) {
			t.Errorf("%+v came back as %+v, %v", d, got, err)
		}
	}
	// A time that no JSON has is none.
	for _, at := range []time.Time{time.UnixMicro(math.MinInt64), time.UnixMicro(math.MaxInt64), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		b, err := AppendData(nil, Data{Time: at})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseData(b[headerSize:]); err != nil || !got.Time.IsZero() {
			t.Errorf("%v came back as %+v, %v", at, got, err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	header := func(kind FrameType, n int) string { return string(appendHeader(nil, kind, n)) }
	for _, c := range []struct {
		name, in string
		max      int
		kind     Kind  // of the error,
		err      error // or the error
	}{
		{name: "end", in: "", err: io.EOF},
		{name: "end in the header", in: "\x02\x00", err: io.ErrUnexpectedEOF},
		{name: "end before the payload", in: header(FrameMsg, 5), err: io.ErrUnexpectedEOF},
		{name: "end in the payload", in: header(FrameMsg, 5) + "abc", err: io.ErrUnexpectedEOF},
		{name: "end in a payload of several steps", in: header(FrameMsg, 3*growStep) + strings.Repeat("x", 2*growStep), err: io.ErrUnexpectedEOF},
		{name: "end in a frame to ignore", in: header(0x90, 5) + "abc", err: io.ErrUnexpectedEOF},
		{name: "type 0", in: header(0, 0), kind: BadUsage},
		{name: "type 6", in: header(6, 0), kind: BadUsage},
		{name: "type 0x7f", in: header(0x7f, 0), kind: BadUsage},
		{name: "call", in: header(FrameCall, MaxCall+1), kind: TooLarge},
		{name: "message", in: header(FrameMsg, MaxMsg+1), kind: TooLarge},
		{name: "data", in: header(FrameData, MaxData+dataHeaderSize+1), kind: TooLarge},
		{name: "status", in: header(FrameStatus, MaxStatus+1), kind: TooLarge},
		{name: "end with a payload", in: header(FrameEnd, 1), kind: TooLarge},
		{name: "frame to ignore", in: header(0xff, MaxMsg+1), kind: TooLarge},
		{name: "the largest length", in: header(FrameMsg, 1<<24-1), kind: TooLarge},
		{name: "limit of its own", in: header(FrameMsg, 101), max: 100, kind: TooLarge},
		{name: "limit that widens nothing", in: header(FrameEnd, 1), max: 100, kind: TooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := NewReader(strings.NewReader(c.in), c.max).Next()
			if c.err != nil && !errors.Is(err, c.err) || c.kind != "" && KindOf(err) != c.kind {
				t.Errorf("got %v of kind %q, want %v%s", err, KindOf(err), c.err, c.kind)
			}
		})
	}
}

func TestReaderPassesOnErrors(t *testing.T) {
	mine := errors.New("mine")
	for _, before := range []string{"", "\x02", "\x02\x00\x00\x05", "\x02\x00\x00\x05ab"} {
		r := NewReader(io.MultiReader(strings.NewReader(before), iotest.ErrReader(mine)), 0)
		if _, _, err := r.Next(); !errors.Is(err, mine) {
			t.Errorf("after %q: %v", before, err)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	for _, c := range []struct {
		kind  FrameType
		limit int
	}{{FrameCall, MaxCall}, {FrameMsg, MaxMsg}, {FrameStatus, MaxStatus}, {FrameEnd, 0}} {
		if _, err := AppendFrame(nil, c.kind, make([]byte, c.limit)); err != nil {
			t.Errorf("%s at its limit: %v", c.kind, err)
		}
		b, err := AppendFrame([]byte("x"), c.kind, make([]byte, c.limit+1))
		if KindOf(err) != TooLarge || string(b) != "x" {
			t.Errorf("%s over its limit: %d bytes, %v", c.kind, len(b), err)
		}
	}
	if _, err := AppendData(nil, Data{Bytes: make([]byte, MaxData+1)}); KindOf(err) != TooLarge {
		t.Errorf("DATA over its limit: %v", err)
	}
}

// A length that is only claimed costs next to nothing.
func TestReaderGrowsAsBytesArrive(t *testing.T) {
	in := append(appendHeader(nil, FrameMsg, MaxMsg), "abc"...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const n = 50
	for range n {
		NewReader(bytes.NewReader(in), 0).Next()
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 2*growStep {
		t.Errorf("a claimed length of 1 MiB made the reader allocate %d bytes", each)
	}
}

func TestIgnorableFramesAreSkipped(t *testing.T) {
	in := appendHeader(nil, 0x80, 3)
	in = append(in, "xyz"...)
	in = appendHeader(in, 0xff, 0)
	in, _ = AppendFrame(in, FrameMsg, []byte("{}"))
	kind, payload, err := NewReader(bytes.NewReader(in), 0).Next()
	if err != nil || kind != FrameMsg || string(payload) != "{}" {
		t.Fatalf("got %s %q, %v", kind, payload, err)
	}
}

// FuzzReader: whatever arrives, a Reader ends with an error, keeps to its
// limits, and what it accepts is written again as it was.
func FuzzReader(f *testing.F) {
	_, frames := goldenFrames(f)
	f.Add(bytes.Join(frames, nil), 0)
	for _, b := range frames {
		f.Add(b, 0)
		f.Add(b[:len(b)-1], 7)
	}
	f.Add([]byte{2, 0xff, 0xff, 0xff}, 0)
	f.Add([]byte{0x80, 0, 0, 1, 0, 4, 0, 0, 0}, 1)
	f.Fuzz(func(t *testing.T, in []byte, limit int) {
		limit = max(limit, 0)
		r := NewReader(bytes.NewReader(in), limit)
		var again []byte
		for {
			kind, payload, err := r.Next()
			if err != nil {
				if e, ok := errors.AsType[*Error](err); ok && e.Kind != BadUsage && e.Kind != TooLarge {
					t.Fatalf("refused with %v", e)
				}
				break
			}
			if limit > 0 && len(payload) > limit {
				t.Fatalf("a payload of %d bytes passed the limit of %d", len(payload), limit)
			}
			if kind == FrameData {
				if d, err := ParseData(payload); err == nil {
					// Times before 1970 come back as they were too; of no meaning, as none.
					want := bytes.Clone(payload)
					if d.Time.IsZero() {
						clear(want[8:16])
					}
					b, err := AppendData(nil, d)
					if err != nil || !bytes.Equal(b[headerSize:], want) {
						t.Fatalf("DATA %x is written again as %x, %v", payload, b, err)
					}
				}
			}
			if again, err = AppendFrame(again, kind, payload); err != nil {
				t.Fatalf("a frame that was read cannot be written: %v", err)
			}
		}
		if len(again) > len(in) {
			t.Fatalf("%d bytes were read out of %d", len(again), len(in))
		}
		if !bytes.HasPrefix(in, again) && !hasIgnorable(in) {
			t.Fatalf("read %x out of %x", again, in)
		}
	})
}

// hasIgnorable reports whether there may be a frame that is skipped.
func hasIgnorable(in []byte) bool {
	return bytes.ContainsFunc(in, func(r rune) bool { return r >= 0x80 })
}
