package output

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	table := NewTable("ID", "STATE", "LAST SEEN")
	table.Row("a", "pending", "now")
	table.Row("longer-id", "", "evil\x1b[2J\nline")
	var b bytes.Buffer
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := "ID         STATE    LAST SEEN\n" +
		"a          pending  now\n" +
		"longer-id  -        \"evil\\x1b[2J\\nline\"\n"
	if b.String() != want {
		t.Errorf("table:\n%s\nwant:\n%s", &b, want)
	}
}

func TestAge(t *testing.T) {
	now := time.Unix(1e9, 0)
	for d, want := range map[time.Duration]string{
		-time.Second: "now", 0: "now", 90 * time.Second: "90s ago", 5 * time.Minute: "5m ago",
		3 * time.Hour: "3h ago", 50 * time.Hour: "2d ago",
	} {
		if got := Age(now, now.Add(-d)); got != want {
			t.Errorf("Age of %v = %q, want %q", d, got, want)
		}
	}
	if got := Age(now, time.Time{}); got != "" {
		t.Errorf("Age of nothing = %q", got)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 3 << 30: "3.0 GiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-1: "0ms", 12345678: "12ms", 2140 * time.Millisecond: "2.1s", 200 * time.Second: "3m20s"} {
		if got := Took(d); got != want {
			t.Errorf("Took(%d) = %q, want %q", d, got, want)
		}
	}
	if got := Counts(map[string]int{"queued": 3, "error": 0, "running": 1}); got != "3 queued, 1 running" {
		t.Errorf("Counts = %q", got)
	}
	if got := Pairs(map[string]string{"b": "2", "a": "1"}); got != "a=1,b=2" {
		t.Errorf("Pairs = %q", got)
	}
}

func TestStamper(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	var b bytes.Buffer
	s := NewStamper(&b)
	for _, piece := range []string{"one\ntw", "o\n", "three"} {
		if err := s.Write(at, []byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	const stamp = "2026-01-02T03:04:05.000006Z "
	if want := stamp + "one\n" + stamp + "two\n" + stamp + "three"; b.String() != want {
		t.Errorf("stamped %q, want %q", b.String(), want)
	}
}

func TestMeter(t *testing.T) {
	var b bytes.Buffer
	m := NewMeter(&b)
	m.Say("%d files", 1)
	m.Say("%d files", 2) // too soon
	m.Clear()
	m.Clear()
	if got := b.String(); got != "\r\x1b[K1 files\r\x1b[K" {
		t.Errorf("meter wrote %q", got)
	}
	NewMeter(nil).Say("nothing")
	if IsTerminal(&b) || IsTerminal(strings.NewReader("")) {
		t.Error("a buffer is taken for a terminal")
	}
}

// A document says what is not seen by its number, and is the same document.
func TestHiddenCharacters(t *testing.T) {
	const text = "a\x1b\x7f\u009b\u202e\U000e0001 \u00a0ü☺"
	for name, write := range map[string]func(io.Writer, any) error{"JSON": JSON, "Line": Line} {
		var b bytes.Buffer
		if err := write(&b, map[string]string{"k" + text: text}); err != nil {
			t.Fatal(err)
		}
		if want := `"a\u001b\u007f\u009b\u202e\udb40\udc01 ` + "\u00a0ü☺\""; !strings.Contains(b.String(), want) {
			t.Errorf("%s: %s, want %s", name, &b, want)
		}
		var back map[string]string
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || back["k"+text] != text {
			t.Errorf("%s: read back as %q, %v", name, back, err)
		}
	}
}
