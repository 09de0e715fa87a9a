package executor

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// starter forks from threads that live as long as itself: the kernel sends
// the parent death signal when the thread that forked ends, and Go's own
// threads may end at any time. The threads are enlisted with the commands' user.
type starter struct {
	work chan func() // sent by run, closed by close
	wg   sync.WaitGroup
}

func newStarter(threads int, user *User) (*starter, error) {
	s := &starter{work: make(chan func())}
	enlisted := make(chan error, threads) // one from each
	for range threads {
		s.wg.Go(func() { s.serve(user, enlisted) })
	}
	var failed error
	for range threads {
		if err := <-enlisted; err != nil {
			failed = err
		}
	}
	if failed != nil {
		s.close()
		return nil, failed
	}
	return s, nil
}

// serve is the life of one thread.
func (s *starter) serve(user *User, enlisted chan<- error) {
	// Never unlocked: the thread ends with the goroutine, and what it has
	// become with it.
	runtime.LockOSThread()
	if user != nil && unix.Gettid() == os.Getpid() {
		// The first thread shows in /proc what the process is. While this
		// goroutine holds it no other one gets it.
		var other sync.WaitGroup
		other.Go(func() { s.serve(user, enlisted) })
		other.Wait()
		runtime.UnlockOSThread()
		return
	}
	err := user.enlist()
	if enlisted <- err; err != nil {
		return
	}
	for f := range s.work {
		f()
	}
}

// run calls f in one of the threads.
func (s *starter) run(f func()) {
	done := make(chan struct{})
	s.work <- func() {
		f()
		close(done)
	}
	<-done
}

func (s *starter) close() {
	close(s.work)
	s.wg.Wait()
}
