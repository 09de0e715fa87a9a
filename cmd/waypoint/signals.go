package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// interrupted is the cause of a command's end by a signal.
type interrupted struct{ sig os.Signal }

func (e interrupted) Error() string { return "interrupted by " + e.sig.String() }

// askedToEnd reports whether ctx ended by a signal. For what serves until it is
// asked to end that is a good end, also while it starts.
func askedToEnd(ctx context.Context) bool {
	_, ok := errors.AsType[interrupted](context.Cause(ctx))
	return ok
}

// signals hands SIGINT, SIGTERM and SIGHUP to whoever is responsible: at first the
// program itself, later a command that knows something better to do.
type signals struct {
	c    chan os.Signal // the runtime sends; closed by close
	pipe chan os.Signal // never read
	done sync.WaitGroup

	mu      sync.Mutex
	handler func(os.Signal)
}

func listenSignals(handler func(os.Signal)) *signals {
	s := &signals{c: make(chan os.Signal, 4), pipe: make(chan os.Signal, 1), handler: handler}
	signal.Notify(s.c, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup
		// Its terminal is gone: what this process keeps is to go with it.
		signal.Notify(s.c, syscall.SIGHUP)
	}
	// Listening for SIGPIPE makes a write to a closed stdout an error, which
	// lets jobs in this process be ended; not ignoring it leaves children
	// with the usual meaning.
	signal.Notify(s.pipe, syscall.SIGPIPE)
	s.done.Go(func() {
		for sig := range s.c {
			s.mu.Lock()
			h := s.handler
			s.mu.Unlock()
			h(sig)
		}
	})
	return s
}

// handle makes h responsible, which must not block, until the function it
// returns is called.
func (s *signals) handle(h func(os.Signal)) (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.handler
	s.handler = h
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.handler = before
	}
}

func (s *signals) close() {
	signal.Stop(s.c)
	signal.Stop(s.pipe)
	close(s.c)
	s.done.Wait()
}
