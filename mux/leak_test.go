package mux

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// leftovers says what a session still holds of calls that are over.
func (s *Session) leftovers() string {
	s.guard.mu.Lock()
	defer s.guard.mu.Unlock()
	held := [...]int{s.yamux.NumStreams(), len(s.guard.streams), s.guard.theirs, len(s.guard.syns), len(s.slots), len(s.handling)}
	if held == [len(held)]int{} {
		return ""
	}
	return fmt.Sprintf("streams of yamux's, links, theirs, unacknowledged, slots, handlers: %v", held)
}

// However a call ends, nothing of it is left at either end: yamux by itself
// would keep a stream for as long as the other side does not close it, and
// let writers wait for minutes.
func TestNothingIsLeftOfCalls(t *testing.T) {
	release := make(chan struct{})
	a, b := Pipe()
	accepted := make(chan *Session, 1)
	go func() {
		s, err := Accept(t.Context(), b, Config{}, func(context.Context, *Peer) (*Admission, error) {
			return &Admission{Table: Table{
				"ends":  func(context.Context, *Stream) error { return nil },
				"fails": func(context.Context, *Stream) error { return wire.Errorf(wire.Conflict, "no") },
				"holds": func(ctx context.Context, _ *Stream) error { <-ctx.Done(); return nil },
				"floods": func(_ context.Context, st *Stream) error {
					for {
						if err := st.SendData(wire.Data{Bytes: make([]byte, wire.MaxData)}); err != nil {
							return err
						}
					}
				},
				"gives up": func(ctx context.Context, st *Stream) error {
					st.Close()
					return nil
				},
				"deaf": func(context.Context, *Stream) error { <-release; return nil },
			}}, nil
		})
		if err != nil {
			t.Error(err)
		}
		accepted <- s
	}()
	client, err := Connect(t.Context(), a, Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	server := <-accepted
	defer server.Close()
	defer client.Close()

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
		left := client.leftovers() + server.leftovers()
		if left == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("client: %s; server: %s", client.leftovers(), server.leftovers())
		}
	}
	if err := errors.Join(client.Err(), server.Err()); err != nil {
		t.Fatal(err)
	}
}
