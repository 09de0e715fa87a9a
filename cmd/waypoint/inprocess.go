package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner"
	"github.com/waypointd/waypoint/runner/supervisor"
)

// inProcess is a runner of kind local in this process. It takes only the jobs
// that are addressed to it, runs them in the caller's own directory with the
// caller's own environment, and is gone with the command.
type inProcess struct {
	id         string
	runner     *runner.Runner
	supervisor supervisor.Jobs
	scratch    *scratch // of attempts, removed at the end

	drain context.CancelFunc // take nothing more
	halt  context.CancelFunc // stop at once
	done  sync.WaitGroup
	err   error // of the runner; read after done
}

// admission is how long a server has to admit the runner of this process.
const admission = 10 * time.Second

func (a *app) startInProcess(conn *connection, root string) (*inProcess, error) {
	log, err := a.logger()
	if err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make runner key: %w", err)
	}
	p := new(inProcess)
	if p.scratch, err = newScratch(a.env.get("TMPDIR")); err != nil {
		return nil, err
	}
	dir := p.scratch.path
	p.supervisor, err = supervisor.New(supervisor.Config{Dir: dir, Logger: log})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start supervisor: %w", err), p.scratch.remove())
	}
	p.runner, err = runner.New(runner.Config{
		Dial:        conn.dial,
		Kind:        wire.KindLocal,
		Key:         key,
		Login:       conn.login,
		Concurrency: 1,
		Dir:         filepath.Join(dir, scratchJobs),
		Supervisor:  p.supervisor,
		Root:        root,
		BaseEnv:     a.env.without(secrets...),
		Software:    software(),
		Logger:      log,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start runner in this process: %w", err), p.supervisor.Close(), p.scratch.remove())
	}
	ctx, halt := context.WithCancel(context.WithoutCancel(a.ctx))
	stop, drain := context.WithCancel(ctx)
	p.halt, p.drain = halt, drain
	ended := make(chan struct{})
	p.done.Go(func() {
		defer close(ended)
		p.err = p.runner.Run(ctx, stop)
	})
	if p.id, err = p.awaitID(a.ctx, ended); err != nil {
		p.halt()
		return nil, errors.Join(fmt.Errorf("start runner in this process: %w", err), p.close())
	}
	return p, nil
}

// awaitID waits until the server has given the runner its id.
func (p *inProcess) awaitID(ctx context.Context, ended <-chan struct{}) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, admission)
	defer cancel()
	go func() {
		// Ends with ctx, which this function ends.
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	id, err := p.runner.ID(ctx)
	if err != nil {
		select {
		case <-ended:
			if p.err != nil {
				return "", p.err
			}
		default:
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return "", wire.Errorf(wire.Unavailable, "the server did not admit it within %s", admission)
		}
	}
	return id, err
}

// close ends the runner once what it has done is reported, and removes what
// it kept.
func (p *inProcess) close() error {
	p.drain()
	p.done.Wait()
	p.halt()
	err := errors.Join(p.supervisor.Close(), p.scratch.remove())
	if err != nil {
		return fmt.Errorf("end runner in this process: %w", err)
	}
	return nil
}
