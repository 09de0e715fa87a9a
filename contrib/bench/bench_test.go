package main

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var s samples
	for i := range 100 {
		s = append(s, time.Duration(99-i))
	}
	if s.p50() != 50 || s.p99() != 99 || samples(nil).p50() != 0 || (samples{7}).p99() != 7 {
		t.Errorf("p50 %d, p99 %d, of one %d", s.p50(), s.p99(), (samples{7}).p99())
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.0", 9.96: "10.0", 99.94: "99.9", 100: "100", 1234.5: "1,234", 12345678: "12,345,678"} {
		if got := number(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

// Lines that come in pieces are counted once, and late by what they are late.
func TestLateness(t *testing.T) {
	var l lateness
	var text []byte
	for i := range 3 {
		text = fmt.Appendln(text, time.Now().Add(-time.Duration(i)*time.Hour).UnixNano())
	}
	for piece := range bytes.SplitSeq(text, nil) {
		if err := l.add(piece); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.samples) != 3 {
		t.Fatalf("%d lines of 3", len(l.samples))
	}
	for i, d := range l.samples {
		if d.Round(time.Minute) != time.Duration(i)*time.Hour {
			t.Errorf("line %d is late by %s", i, d)
		}
	}
	if err := l.add([]byte("no time\n")); err == nil {
		t.Error("a line that is no time passes")
	}
}

// A line counts for the marks that are before it, whole lines only, and none
// may come behind a younger one.
func TestHearing(t *testing.T) {
	h := &hearing{}
	mark := time.Unix(0, 100)
	h.await(mark, mark.Add(100))
	for _, step := range []struct {
		text string
		want int
	}{{"begun\n99\n100\n1", 0}, {"01\n2", 1}, {"00\n", 1}, {"201\n", 2}} {
		if err := h.add([]byte(step.text)); err != nil {
			t.Fatal(err)
		}
		if n := len(h.heard()); n != step.want {
			t.Errorf("after %q %d marks were passed, want %d", step.text, n, step.want)
		}
	}
	if err := h.add([]byte("150\n")); err == nil {
		t.Error("a line may come behind a younger one")
	}
	if err := h.add([]byte("no time\n")); err == nil {
		t.Error("a line that is no time passes")
	}
}

func TestUsageOfThisProcess(t *testing.T) {
	now, most, err := memory(os.Getpid())
	if err != nil || now < 1<<20 || most < now {
		t.Errorf("resident %d of at most %d, %v", now, most, err)
	}
	if _, _, err := processorTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, _, err := memory(-1); err == nil {
		t.Error("a process that is none has memory")
	}
}

// What is measured against must work by itself.
func TestFloors(t *testing.T) {
	b := &bench{dir: t.TempDir(), config: config{quick: true}}
	path, want, err := b.makeOutput(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != want.n || want.n < 1<<20 {
		t.Errorf("output of %d bytes: %v, %v", want.n, info, err)
	}
	for name, rate := range map[string]func() (float64, error){
		"pipe": func() (float64, error) { return b.pipeRate(path) },
		"sync": func() (float64, error) { return b.syncRate(t.Context(), 2) },
		"fork": func() (float64, error) { return b.forkRate(t.Context(), 2) },
	} {
		if v, err := rate(); err != nil || v <= 0 {
			t.Errorf("%s: %v in a second, %v", name, v, err)
		}
	}
	if left, _ := os.ReadDir(b.dir); len(left) != 1 {
		t.Errorf("floors leave %v behind", left)
	}
}
