package daemon

import (
	"context"
	"sync"
)

// turns has those who change how one runner stands do so one after another, so
// that store, session and what the runner is told never differ in their order.
// A turn is held over calls of the store; the committer takes none.
type turns struct {
	mu sync.Mutex // a leaf
	of map[string]*turn
}

// turn is of one runner.
type turn struct {
	token chan struct{} // held by whose turn it is
	users int           // guarded by turns.mu
}

func newTurns() *turns { return &turns{of: map[string]*turn{}} }

// take waits for the turn of a runner; done ends it.
func (t *turns) take(ctx context.Context, id string) (done func(), err error) {
	t.mu.Lock()
	u := t.of[id]
	if u == nil {
		u = &turn{token: make(chan struct{}, 1)}
		t.of[id] = u
	}
	u.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if u.users--; u.users == 0 {
			delete(t.of, id)
		}
	}
	select {
	case u.token <- struct{}{}:
		return func() { <-u.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
