package executor

import (
	"os"
	"runtime"
	"sync"
)

// starter forks from threads that live as long as itself: the kernel sends
// the parent death signal when the thread that forked ends, and Go's own
// threads may end at any time.
type starter struct {
	work chan func() // sent by run, closed by close
	wg   sync.WaitGroup
}

func newStarter(threads int) *starter {
	s := &starter{work: make(chan func())}
	for range threads {
		s.wg.Go(func() {
			// Never unlocked: the thread ends with the goroutine.
			runtime.LockOSThread()
			for f := range s.work {
				f()
			}
		})
	}
	return s
}

// run calls os.StartProcess in one of the threads.
func (s *starter) run(path string, argv []string, attr *os.ProcAttr) (p *os.Process, err error) {
	done := make(chan struct{})
	s.work <- func() {
		p, err = os.StartProcess(path, argv, attr)
		close(done)
	}
	<-done
	return p, err
}

func (s *starter) close() {
	close(s.work)
	s.wg.Wait()
}
