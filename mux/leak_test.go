package mux_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// However a call ends, nothing of it is left at either end: yamux by itself
// would keep a stream for as long as the other side does not close it, and
// let writers wait for minutes.
func TestNothingIsLeftOfCalls(t *testing.T) {
	for name, pair := range map[string]func(*testing.T, mux.Table) *muxtest.Pair{
		"memory": func(t *testing.T, table mux.Table) *muxtest.Pair { return muxtest.NewPair(t, table, muxtest.Options{}) },
		"TLS": func(t *testing.T, table mux.Table) *muxtest.Pair {
			p, _ := tlsPair(t, table, muxtest.Options{})
			return p
		},
	} {
		t.Run(name, func(t *testing.T) { nothingIsLeft(t, pair) })
	}
}

func nothingIsLeft(t *testing.T, pair func(*testing.T, mux.Table) *muxtest.Pair) {
	release := make(chan struct{})
	p := pair(t, mux.Table{
		"ends":  func(context.Context, *mux.Stream) error { return nil },
		"fails": func(context.Context, *mux.Stream) error { return wire.Errorf(wire.Conflict, "no") },
		"holds": func(ctx context.Context, _ *mux.Stream) error { <-ctx.Done(); return nil },
		"floods": func(_ context.Context, st *mux.Stream) error {
			for {
				if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)}); err != nil {
					return err
				}
			}
		},
		"gives up": func(ctx context.Context, st *mux.Stream) error {
			st.Close()
			return nil
		},
		"deaf": func(context.Context, *mux.Stream) error { <-release; return nil },
	})
	client, server := p.Client, p.Server

	var calls sync.WaitGroup
	for _, method := range []string{"ends", "fails", "holds", "floods", "gives up", "deaf", "unknown"} {
		for _, how := range []string{"close", "cancel", "receive once and close", "send and close", "deadline"} {
			calls.Go(func() {
				for range 20 {
					ctx, cancel := context.WithCancel(t.Context())
					if how == "deadline" {
						ctx, cancel = context.WithTimeout(t.Context(), 2*time.Millisecond)
					}
					st, err := client.Open(ctx, method, nil)
					if err != nil {
						cancel()
						if wire.KindOf(err) != wire.Timeout {
							t.Errorf("%s, %s: %v", method, how, err)
						}
						continue
					}
					switch how {
					case "receive once and close":
						if method != "holds" && method != "deaf" {
							st.Recv()
						}
					case "send and close":
						st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)})
					case "deadline":
						for {
							if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)}); err != nil {
								break
							}
						}
						if _, err := st.Recv(); err == nil && method != "floods" {
							t.Errorf("%s, %s: no error", method, how)
						}
					}
					if how != "cancel" {
						st.Close()
					}
					cancel()
				}
			})
		}
	}
	calls.Wait()
	close(release)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		left := client.Leftovers() + server.Leftovers()
		if left == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("client: %s; server: %s", client.Leftovers(), server.Leftovers())
		}
	}
	if err := errors.Join(client.Err(), server.Err()); err != nil {
		t.Fatal(err)
	}
}
