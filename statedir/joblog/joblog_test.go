package joblog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		os.Exit(appendCounters(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// counters is the line that the child writes at each of n appends.
func counter(n int) []byte {
	return fmt.Appendf(nil, "line %d%s\n", n, bytes.Repeat([]byte("."), n%3000))
}

// appendCounters appends until it is killed, or 200,000 times.
func appendCounters(path, from string) int {
	w, err := Create(path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	n, _ := strconv.Atoi(from)
	for i := n; i < n+200_000; i++ {
		if _, err := w.Append(wire.Stdout, time.Now(), counter(i)); err != nil {
			fmt.Println(err)
			return 1
		}
		if i == n {
			fmt.Println("going")
		}
	}
	return 0
}

func create(t testing.TB, path string) *Writer {
	t.Helper()
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func reader(t testing.TB, path string, offset int64) *Reader {
	t.Helper()
	r, err := Open(path, offset)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// rest reads to the present end and checks that the chunks fit.
func rest(t testing.TB, r *Reader, at int64) []byte {
	t.Helper()
	var all []byte
	for {
		d, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if d.Offset != at+int64(len(all)) {
			t.Fatalf("chunk at %d, want %d", d.Offset, at+int64(len(all)))
		}
		if len(d.Bytes) == 0 || len(d.Bytes) > wire.MaxData {
			t.Fatalf("chunk of %d bytes", len(d.Bytes))
		}
		all = append(all, d.Bytes...)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)})
	r.Read(b)
	return b
}

func TestAppendAndFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := create(t, path)
	r := reader(t, path, 0)
	if _, err := r.Next(); err != io.EOF {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901999, time.UTC)
	for i, s := range []wire.StreamID{wire.Stdout, wire.Stderr, wire.Notice} {
		text := fmt.Appendf(nil, "text %d", i)
		if n, err := w.Append(s, at, text); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
		d, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if d.Stream != s || !bytes.Equal(d.Bytes, text) || d.Offset != int64(6*i) || !d.Time.Equal(at.Truncate(time.Microsecond)) {
			t.Errorf("got %+v", d)
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatal(err)
		}
	}
	if n, err := w.Append(wire.Stdout, at, nil); n != 0 || err != nil || w.Len() != 18 {
		t.Error(n, err, w.Len())
	}
}

func TestLargeAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := create(t, path)
	var all []byte
	for _, n := range []int{1, wire.MaxData, wire.MaxData + 1, writeChunk, writeChunk + 1, 5<<20 + 3} {
		b := noise(n)
		if got, err := w.Append(wire.Stdout, time.Now(), b); got != n || err != nil {
			t.Fatal(got, err)
		}
		all = append(all, b...)
	}
	if !bytes.Equal(rest(t, reader(t, path, 0), 0), all) {
		t.Error("what is read is not what was written")
	}
	w.Close()
	if again := create(t, path); again.Len() != int64(len(all)) {
		t.Errorf("opened again the log has %d bytes, want %d", again.Len(), len(all))
	}
}

func TestSeek(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := create(t, path)
	var all []byte
	for i := range 400 {
		b := noise(1 + i*i%(40<<10))
		if _, err := w.Append(wire.Stderr, time.Now(), b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	for range 300 {
		at := rand.Int64N(int64(len(all) + 1))
		if !bytes.Equal(rest(t, reader(t, path, at), at), all[at:]) {
			t.Fatalf("reading from %d gave something else", at)
		}
	}
	// Past the end: reached once the log has grown.
	at := int64(len(all) + 5)
	r := reader(t, path, at)
	for _, step := range []struct{ add, want string }{{"1234", ""}, {"567", "67"}, {"8", "8"}} {
		if _, err := w.Append(wire.Stdout, time.Now(), []byte(step.add)); err != nil {
			t.Fatal(err)
		}
		if got := rest(t, r, at); string(got) != step.want {
			t.Fatalf("got %q, want %q", got, step.want)
		}
		at += int64(len(step.want))
	}
	if _, err := Open(path, -1); wire.KindOf(err) != wire.BadUsage {
		t.Error(err)
	}
}

// Any prefix of a good file recovers to the whole records in it, and readers
// see just these before and after.
func TestEveryPrefixRecovers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	w := create(t, path)
	var all []byte
	type end struct{ size, len int64 }
	ends := []end{{0, 0}}
	for i := range 12 {
		b := noise(1 + i*37)
		if _, err := w.Append(wire.Stdout, time.Now(), b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
		ends = append(ends, end{w.size, w.len})
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	part := filepath.Join(dir, "part")
	whole := 0
	for n := range len(file) + 1 {
		if whole+1 < len(ends) && int64(n) >= ends[whole+1].size {
			whole++
		}
		tail := file[:n]
		if n%2 == 1 {
			tail = append(bytes.Clone(tail), make([]byte, 64)...) // as after a power cut
		}
		if err := os.WriteFile(part, tail, 0o600); err != nil {
			t.Fatal(err)
		}
		r := reader(t, part, 0)
		if got := rest(t, r, 0); !bytes.Equal(got, all[:ends[whole].len]) {
			t.Fatalf("%d bytes of file: read %d, want %d", n, len(got), ends[whole].len)
		}
		w := create(t, part)
		if w.Len() != ends[whole].len {
			t.Fatalf("%d bytes of file: recovered %d, want %d", n, w.Len(), ends[whole].len)
		}
		if _, err := w.Append(wire.Stdout, time.Now(), []byte("more")); err != nil {
			t.Fatal(err)
		}
		if got := rest(t, r, ends[whole].len); string(got) != "more" {
			t.Fatalf("%d bytes of file: the reader then got %q", n, got)
		}
		r.Close()
		w.Close()
	}
}

func TestFlippedBitEndsLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w := create(t, path)
	for range 3 {
		if _, err := w.Append(wire.Stdout, time.Now(), noise(100)); err != nil {
			t.Fatal(err)
		}
	}
	file, _ := os.ReadFile(path)
	for i := markSize + 120; i < markSize+240; i++ {
		bad := bytes.Clone(file)
		bad[i] ^= 4
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := rest(t, reader(t, path, 0), 0); len(got) != 100 {
			t.Fatalf("with byte %d flipped %d bytes were read", i, len(got))
		}
	}
}

// Logs that earlier releases wrote are read and continued; one of a later
// release is refused by both sides and left as it is.
func TestFormats(t *testing.T) {
	for version := range Version + 1 {
		golden, err := os.ReadFile(fmt.Sprintf("testdata/format%d.log", version))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, golden, 0o600); err != nil {
			t.Fatal(err)
		}
		r := reader(t, path, 0)
		var kinds []wire.StreamID
		var text []byte
		for {
			d, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if d.Time.Year() != 2026 {
				t.Errorf("format %d: written at %s", version, d.Time)
			}
			kinds, text = append(kinds, d.Stream), append(text, d.Bytes...)
		}
		if string(text) != "err\nout\nhalf\n" || kinds[0] != wire.Stderr || kinds[1] != wire.Stdout {
			t.Errorf("format %d: read %q of %v", version, text, kinds)
		}
		w := create(t, path)
		if _, err := w.Append(wire.Stdout, time.Now(), []byte("more")); err != nil {
			t.Fatal(err)
		}
		if got := rest(t, r, int64(len(text))); string(got) != "more" {
			t.Errorf("format %d: what was added is read as %q", version, got)
		}
		if got := rest(t, reader(t, path, 4), 4); string(got) != "out\nhalf\nmore" {
			t.Errorf("format %d: from 4 on it is %q", version, got)
		}
	}
	newer := []byte("joblog\x00\x02whatever this will be")
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := reader(t, path, 0).Next(); wire.KindOf(err) != wire.Unimplemented {
		t.Errorf("a newer log is read: %v", err)
	}
	if _, err := Create(path); wire.KindOf(err) != wire.Unimplemented {
		t.Errorf("a newer log is written: %v", err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, newer) {
		t.Errorf("a newer log became %q", got)
	}
}

// Readers in this process follow a writer in another one that is killed
// again and again.
func TestKilledWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	create(t, path).Close()
	next := 0 // the line that comes next
	var at int64
	r := reader(t, path, 0)
	// line checks the next one; false at the end for now.
	line := func() bool {
		d, err := r.Next()
		if err == io.EOF {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		if d.Offset != at || !bytes.Equal(d.Bytes, counter(next)) {
			t.Fatalf("at %d: not line %d", at, next)
		}
		at += int64(len(d.Bytes))
		next++
		return true
	}
	for range 8 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "child", path, strconv.Itoa(next))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "going\n" {
			t.Fatal(line, err)
		}
		for end := next + 500; next < end; {
			line()
		}
		cmd.Process.Kill()
		cmd.Wait()
		for line() {
		}
		if w := create(t, path); w.Len() != at {
			t.Fatalf("recovered %d, read %d", w.Len(), at)
		}
	}
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=300k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "log")
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 120<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	w := create(t, path)
	r := reader(t, path, 0)
	all := noise(400 << 10)
	n, err := w.Append(wire.Stdout, time.Now(), all)
	if !errors.Is(err, syscall.ENOSPC) || n == 0 || n >= len(all) || int64(n) != w.Len() {
		t.Fatal(n, w.Len(), err)
	}
	if got := rest(t, r, 0); !bytes.Equal(got, all[:n]) {
		t.Fatalf("read %d bytes, %d were added", len(got), n)
	}
	if m, err := w.Append(wire.Stdout, time.Now(), all[n:]); m != 0 && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(m, err)
	}
	if fi, _ := os.Stat(path); fi.Size() != w.size {
		t.Errorf("the file has %d bytes, %d of them in whole records", fi.Size(), w.size)
	}
	os.Remove(ballast)
	n = int(w.Len())
	small := all[n : n+wire.MaxData+7]
	if m, err := w.Append(wire.Stdout, time.Now(), small); m != len(small) || err != nil {
		t.Fatal(m, err)
	}
	if got := rest(t, reader(t, path, 0), 0); !bytes.Equal(got, all[:n+len(small)]) {
		t.Error("after the disk had room again something else was read")
	}
}

// FuzzAnyFile: whatever is in a file, it is read and continued up to where it is
// whole, or it is of a newer release and is left alone.
func FuzzAnyFile(f *testing.F) {
	dir := f.TempDir()
	good := filepath.Join(dir, "good")
	w := create(f, good)
	for i := range 4 {
		w.Append(wire.StreamID(i), time.UnixMicro(int64(i)), noise(i*11+1))
	}
	w.Close()
	b, err := os.ReadFile(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, int64(0))
	f.Add(b[:len(b)-3], int64(15))
	f.Add(append(bytes.Clone(b), make([]byte, 100)...), int64(1000))
	f.Add([]byte{}, int64(1))
	f.Fuzz(func(t *testing.T, b []byte, offset int64) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := parseMark(append(bytes.Clone(b), make([]byte, markSize)...)); err != nil && len(b) >= markSize {
			for _, from := range []int64{0, max(offset, 0)} {
				if _, err := reader(t, path, from).Next(); wire.KindOf(err) != wire.Unimplemented {
					t.Fatalf("a newer log is read from %d: %v", from, err)
				}
			}
			if _, err := Create(path); wire.KindOf(err) != wire.Unimplemented {
				t.Fatalf("a newer log is written: %v", err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, b) {
				t.Fatalf("a newer log became %q, %v", after, err)
			}
			return
		}
		before := rest(t, reader(t, path, 0), 0)
		switch {
		case offset < 0:
		case offset > int64(len(before)):
			// A seek goes by headers, so it may find what lies beyond a record
			// whose bytes are damaged; it must end, and begin where it was told.
			r := reader(t, path, offset)
			for d, err := r.Next(); err == nil; d, err = r.Next() {
				if d.Offset < offset {
					t.Fatalf("chunk at %d before the offset %d", d.Offset, offset)
				}
			}
		default:
			if got := rest(t, reader(t, path, offset), offset); !bytes.Equal(got, before[offset:]) {
				t.Fatal("seek found something else")
			}
		}
		w := create(t, path)
		if w.Len() != int64(len(before)) {
			t.Fatalf("recovered %d bytes, read %d", w.Len(), len(before))
		}
		if _, err := w.Append(wire.Stdout, time.Now(), []byte("more")); err != nil {
			t.Fatal(err)
		}
		if after := rest(t, reader(t, path, 0), 0); string(after) != string(before)+"more" {
			t.Fatal("recovery changed what was there")
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{100, 4 << 10, 64 << 10, 1 << 20} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "log")
			w := create(b, path)
			data := noise(n)
			b.SetBytes(int64(n))
			at := time.Now()
			for b.Loop() {
				if w.Len() > 1<<30 {
					b.StopTimer()
					w.Close()
					os.Remove(path)
					w = create(b, path)
					b.StartTimer()
				}
				if _, err := w.Append(wire.Stdout, at, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int{100, 64 << 10} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "log")
			w := create(b, path)
			data := noise(n)
			for w.Len() < 64<<20 {
				w.Append(wire.Stdout, time.Now(), data)
			}
			b.SetBytes(w.Len())
			for b.Loop() {
				r := reader(b, path, 0)
				for {
					if _, err := r.Next(); err != nil {
						break
					}
				}
				r.Close()
			}
		})
	}
}

// BenchmarkSeek goes to the end of 1 GiB of output.
func BenchmarkSeek(b *testing.B) {
	for _, n := range []int{100, 64 << 10} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			if testing.Short() {
				b.Skip("1 GiB of log")
			}
			path := filepath.Join(b.TempDir(), "log")
			w := create(b, path)
			data := noise(n)
			for w.Len() < 1<<30 {
				if _, err := w.Append(wire.Stdout, time.Now(), data); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				r := reader(b, path, w.Len()-1)
				if d, err := r.Next(); err != nil || len(d.Bytes) != 1 {
					b.Fatal(len(d.Bytes), err)
				}
				r.Close()
			}
		})
	}
}

// A reader of a short log, as most are, must not cost what one of a long log
// does.
func BenchmarkReadShort(b *testing.B) {
	path := filepath.Join(b.TempDir(), "log")
	w, err := Create(path)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := w.Append(wire.Stdout, time.Now(), []byte("done\n")); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r, err := Open(path, 0)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Next(); err != io.EOF {
			b.Fatal(err)
		}
		r.Close()
	}
}
