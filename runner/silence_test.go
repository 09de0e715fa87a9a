package runner

import (
	"testing"
	"time"
)

// No order for too long is no reason to give a session up on which something
// else comes.
func TestSilenceOfOrdersOnly(t *testing.T) {
	asked := make(chan chan time.Duration)
	over := make(chan struct{})
	lives := make(chan time.Duration, 3)
	const limit = time.Hour
	s := newSilence(limit, func() time.Duration {
		answer := make(chan time.Duration)
		asked <- answer
		return <-answer
	}, func(left time.Duration) { lives <- left }, func() { close(over) })
	defer s.stop()
	s.broken(time.Millisecond) // of the orders
	for range 3 {
		answer := <-asked
		select {
		case <-over:
			t.Fatal("given up while something came")
		default:
		}
		answer <- time.Millisecond / 2
		if left := <-lives; left != time.Millisecond/2 {
			t.Errorf("it is said to go on for %v", left)
		}
	}
	(<-asked) <- time.Millisecond
	<-over
}
