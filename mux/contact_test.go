package mux

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// What is told, and when a session is given up, of what comes and of what the
// kernel has seen.
func TestContact(t *testing.T) {
	type poll struct {
		reads   int64
		packets time.Duration
	}
	const unknown = -1
	for name, test := range map[string]struct {
		polls       func(n int) poll // n seconds after the last thing that came
		asked, late int              // with which poll; 0: never
		over        int
	}{
		"nothing comes, no packet either": {
			polls: func(n int) poll { return poll{1, time.Duration(n) * time.Second} },
			asked: 2, late: 5, over: 15,
		},
		"a peer that is stopped, whose host answers": {
			polls: func(n int) poll { return poll{1, time.Duration(n%3) * time.Second} },
			asked: 2, late: 5,
		},
		"a peer on a socket of this host": {
			polls: func(n int) poll { return poll{1, unknown} },
			asked: 2, late: 5,
		},
		"a slow link": {
			polls: func(n int) poll { return poll{int64(n / 4), time.Duration(n%4) * time.Second} },
			asked: 3,
		},
		"this process was stopped for an hour": {
			polls: func(n int) poll {
				if n == 1 {
					return poll{1, time.Hour}
				}
				return poll{int64(n), 0}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := contact{read: 1}
			asked, late, over := 0, 0, 0
			for n := 1; n <= 60 && over == 0; n++ {
				p := test.polls(n)
				ask, tell, end := c.look(p.reads, max(0, p.packets), p.packets != unknown)
				if ask && asked == 0 {
					asked = n
				}
				if tell != nil && *tell && late == 0 {
					late = n
				}
				if end {
					over = n
				}
			}
			if asked != test.asked || late != test.late || over != test.over {
				t.Errorf("asked %d, late %d, over %d seconds after; want %d, %d, %d", asked, late, over, test.asked, test.late, test.over)
			}
		})
	}
}

// A peer that hangs while its host answers is told of, not given up, and told of
// again when it goes on.
func TestContactWithAPeerThatHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a person waits before being told")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan *Session, 1)
	var hang sync.Mutex // held while the peer hangs
	go func() {
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		near, far := net.Pipe() // between the peer and its connection
		go func() {
			io.Copy(conn, near)
			conn.Close()
		}()
		go func() {
			b := make([]byte, 4096)
			for {
				n, err := conn.Read(b)
				if err != nil {
					near.Close()
					return
				}
				hang.Lock()
				near.Write(b[:n])
				hang.Unlock()
			}
		}()
		s, err := Accept(t.Context(), &tcpPipe{far, conn}, Config{Plain: true}, func(context.Context, *Peer) (*Admission, error) {
			return &Admission{}, nil
		})
		if err != nil {
			t.Error(err)
		}
		accepted <- s
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 10)
	s, err := Connect(t.Context(), conn, Config{Contact: func(err error) { told <- err }}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	peer := <-accepted
	if peer == nil {
		t.FailNow()
	}
	defer peer.Close()
	hang.Lock()
	if err := <-told; wire.KindOf(err) != wire.Unavailable {
		t.Errorf("told %v of a peer that hangs", err)
	}
	hang.Unlock()
	if err := <-told; err != nil {
		t.Errorf("told %v of a peer that goes on", err)
	}
	if err := s.Call(t.Context(), wire.MethodPing, nil, nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// tcpPipe is a pipe that takes itself for the TCP connection behind it.
type tcpPipe struct {
	net.Conn
	tcp net.Conn
}

func (p *tcpPipe) LocalAddr() net.Addr  { return p.tcp.LocalAddr() }
func (p *tcpPipe) RemoteAddr() net.Addr { return p.tcp.RemoteAddr() }
