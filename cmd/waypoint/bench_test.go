package main

import (
	"io"
	"strings"
	"testing"
)

// BenchmarkParse is what parsing costs every command.
func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if code := run(b.Context(), []string{"version"}, strings.NewReader(""), io.Discard, io.Discard, nil); code != 0 {
			b.Fatal(code)
		}
	}
}
