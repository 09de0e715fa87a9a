package daemon

import (
	"sync"

	"github.com/waypointd/waypoint/mux/wire"
)

// orders are what is still to be said on a runner's work stream. put never
// blocks: the committer uses it. They are few: a runner's concurrency bounds
// its assignments, and each attempt's orders are a handful.
type orders struct {
	ready chan struct{} // one token: something is there

	mu    sync.Mutex
	queue []wire.WorkOrder // guarded by mu
	over  error            // ends the stream behind the queue; guarded by mu
}

// maxOrders is when a runner that goes on talking and reads nothing is given up.
const maxOrders = 10 * maxConcurrency

func newOrders() *orders { return &orders{ready: make(chan struct{}, 1)} }

func (o *orders) put(w wire.WorkOrder) {
	o.mu.Lock()
	o.queue = append(o.queue, w)
	o.mu.Unlock()
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// end ends the work stream with an error, once all before it has been said.
func (o *orders) end(err error) {
	o.mu.Lock()
	if o.over == nil {
		o.over = err
	}
	o.mu.Unlock()
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// waiting is how many have not been taken.
func (o *orders) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue)
}

// take returns all there is, after ready; with an error nothing comes behind it.
func (o *orders) take() ([]wire.WorkOrder, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.queue
	o.queue = nil
	return q, o.over
}
