package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// measureCommand times whole commands, from exec to exit.
func measureCommand(ctx context.Context, b *bench) error {
	addr := "unix://" + b.socket()
	var all [3]samples
	manager := systemdRun()
	commands := [][]string{
		{b.binary, "version"},
		{b.binary, "--server-addr", addr, "run", "--", "true"},
		manager,
	}
	for range b.rounds() {
		for i, words := range commands {
			if words == nil {
				continue
			}
			s, err := repeat(ctx, b.span(500*time.Millisecond), func() error { return b.command(words) })
			if err != nil {
				return err
			}
			all[i] = append(all[i], s...)
		}
	}
	const name = "waypoint run -- true, whole command"
	if manager != nil {
		b.report.took(name+", p50", all[1].p50(), all[2].p50(), "systemd-run --wait --pipe", "< 1.00")
		b.report.took(name+", p99", all[1].p99(), all[2].p99(), "systemd-run --wait --pipe", "")
	}
	b.report.took(name+", p50", all[1].p50(), all[0].p50(), "waypoint version", "")
	return nil
}

func (b *bench) command(words []string) error {
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env, cmd.Dir = environment(), b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %q: %w: %s", words, err, out)
	}
	return nil
}
