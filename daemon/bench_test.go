package daemon_test

import (
	"testing"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// BenchmarkJob is what the server, and sessions in memory, cost a job without
// output whose runner takes no time: for a client that waits for its end, and
// for one that follows it; counted is waited with metrics.
func BenchmarkJob(b *testing.B) {
	wait := func(c *client.Client, id string) error {
		_, err := c.Wait(b.Context(), id)
		return err
	}
	follow := func(c *client.Client, id string) error {
		for _, err := range c.Stream(b.Context(), wire.StreamRequest{ID: id, Follow: true}) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	for name, until := range map[string]func(*client.Client, string) error{"waited": wait, "counted": wait, "followed": follow} {
		b.Run(name, func(b *testing.B) {
			s := daemontest.Start(b, daemon.Config{Metrics: name == "counted"})
			c := s.Client(b)
			r := s.Adopted(b, "one", nil)
			begun := make(chan struct{})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for range begun {
					r.MustFinish(r.MustStart().JobRef, "", daemontest.Succeeded())
				}
			}()
			b.ReportAllocs()
			for b.Loop() {
				begun <- struct{}{}
				jobs, err := c.Submit(b.Context(), run())
				if err != nil {
					b.Fatal(err)
				}
				if err := until(c, jobs[0].ID); err != nil {
					b.Fatal(err)
				}
			}
			close(begun)
			<-ended
		})
	}
}
