package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// report prints rows as they are measured.
type report struct{ w io.Writer }

func newReport(w io.Writer) *report { return &report{w} }

func (r *report) title(format string, args ...any) {
	fmt.Fprintf(r.w, format+"\n\n", args...)
	r.row("", "measured", "floor", "", "ratio", "wanted")
}

func (r *report) note(format string, args ...any) { fmt.Fprintf(r.w, "\n"+format+"\n", args...) }

func (r *report) row(name, measured, floor, what, ratio, wanted string) {
	line := fmt.Sprintf("%-40s %11s %11s %-25s %8s  %s", name, measured, floor, what, ratio, wanted)
	fmt.Fprintln(r.w, strings.TrimRight(line, " "))
}

// took is a row of times: the smaller ratio is the better.
func (r *report) took(name string, d, floor time.Duration, what, wanted string) {
	r.row(name, ms(d), ms(floor), what, ratio(d.Seconds(), floor.Seconds()), wanted)
}

// rate is a row of things in a second: the greater ratio is the better.
func (r *report) rate(name string, v, floor float64, unit, what, wanted string) {
	r.row(name, number(v)+unit, number(floor)+unit, what, ratio(v, floor), wanted)
}

// plain is a row without a floor.
func (r *report) plain(name, measured, wanted string) { r.row(name, measured, "", "", "", wanted) }

func ratio(v, floor float64) string {
	if floor == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", v/floor)
}

func ms(d time.Duration) string {
	v := d.Seconds() * 1000
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f ms", v)
	case v < 100:
		return fmt.Sprintf("%.1f ms", v)
	}
	return fmt.Sprintf("%.0f ms", v)
}

// number is v with few digits, or in groups of three.
func number(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
