package main

import "testing"

func TestGreeting(t *testing.T) {
	if got, want := greeting("world", "7"), "Hello, world! This is hello, build 7."; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
