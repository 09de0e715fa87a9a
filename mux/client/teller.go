package client

import "sync"

// teller tells Config.Reconnecting of the contact, one thing at a time and in order, in a
// goroutine that ends when there is nothing more to tell. Who is told may be held up for
// ever, as by a pipe that nobody reads, and holds nobody up: then what comes
// meanwhile is told as the last of it alone.
type teller struct {
	to func(err error)

	mu   sync.Mutex
	busy bool  // the goroutine is there; guarded by mu
	next *news // guarded by mu
}

// news is one thing to tell.
type news struct {
	err  error
	told chan struct{} // closed when it, or what came after it, has been told
}

// tell returns a channel that is closed when it has been told.
func (t *teller) tell(err error) (told <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == nil {
		t.next = &news{told: make(chan struct{})}
	}
	t.next.err = err
	if !t.busy {
		t.busy = true
		go t.run()
	}
	return t.next.told
}

func (t *teller) run() {
	for {
		t.mu.Lock()
		n := t.next
		t.next, t.busy = nil, n != nil
		t.mu.Unlock()
		if n == nil {
			return
		}
		t.to(n.err)
		close(n.told)
	}
}
