package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// start starts the server and both runners.
func (b *bench) start(ctx context.Context) error {
	if _, err := b.startServer(ctx, b.path("server")); err != nil {
		return err
	}
	var err error
	if b.wide, err = b.startAgent(ctx, "wide", 64); err != nil {
		return err
	}
	b.plain, err = b.startAgent(ctx, "plain", 0)
	return err
}

// measureStart times the start of the program as a command and as a server.
func measureStart(ctx context.Context, b *bench) error {
	floor, err := repeat(ctx, b.span(300*time.Millisecond), forkExec)
	if err != nil {
		return err
	}
	version, err := repeat(ctx, b.span(600*time.Millisecond), func() error {
		if err := exec.Command(b.binary, "version").Run(); err != nil {
			return fmt.Errorf("run waypoint version: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.report.took("waypoint version", version.p50(), floor.p50(), "fork+exec /bin/true", "")

	// A server of its own, whose store is there already the second time.
	other := &bench{config: b.config, dir: b.path("start"), report: b.report}
	if err := makeDir(other.dir); err != nil {
		return err
	}
	for _, what := range []string{"server start, new store → answers", "server start → answers"} {
		took, err := other.startServer(ctx, other.path("server"))
		if err != nil {
			return err
		}
		b.report.took(what, took, version.p50(), "waypoint version", "< 100 ms")
		if err := other.server.stop(); err != nil {
			return err
		}
	}
	return nil
}

// measureIdle reads the memory of processes that have done nothing yet.
func measureIdle(ctx context.Context, b *bench) error {
	wanted := map[string]string{"server": "≤ 25 MB", "agent": "≤ 15 MB", "supervisor": "≤ 10 MB"}
	return b.reportMemory("idle", wanted)
}

func (b *bench) reportMemory(when string, wanted map[string]string) error {
	for _, r := range b.residents() {
		now, most, err := memory(r.pid)
		if err != nil {
			return err
		}
		b.report.plain(fmt.Sprintf("resident, %s: %s", when, r.name),
			megabytes(now), fmt.Sprintf("%s (most so far %s)", wanted[r.name], megabytes(most)))
	}
	return nil
}

// measureSize tells what the run has left on the disk.
func measureSize(ctx context.Context, b *bench) error {
	c, err := b.client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	status, err := c.ServerStatus(ctx)
	if err != nil {
		return fmt.Errorf("ask server: %w", err)
	}
	jobs := 0
	for _, n := range status.Jobs {
		jobs += n
	}
	store, err := size(b.path("server"))
	if err != nil {
		return err
	}
	b.report.plain(fmt.Sprintf("server's state, %s jobs", number(float64(jobs))), megabytes(store), "")
	for _, a := range []*agent{b.wide, b.plain} {
		spool, err := size(b.path(a.id))
		if err != nil {
			return err
		}
		b.report.plain(fmt.Sprintf("state of runner %s", a.id), megabytes(spool), "")
	}
	return nil
}
