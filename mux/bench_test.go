package mux_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/muxtest"
	"github.com/waypointd/waypoint/mux/wire"
)

// unixPair is a session over a Unix socket, both ends in this process.
func unixPair(tb testing.TB, table mux.Table) *mux.Session {
	tb.Helper()
	a := mux.Address{Network: "unix", Path: filepath.Join(tb.TempDir(), "s")}
	l, err := mux.Listen(tb.Context(), a, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	return dialPair(tb, l, a, table)
}

func dialPair(tb testing.TB, l net.Listener, a mux.Address, table mux.Table) *mux.Session {
	tb.Helper()
	server := make(chan *mux.Session, 1)
	go func() {
		defer close(server)
		if conn, err := l.Accept(); err == nil {
			if s, err := mux.Accept(context.Background(), conn, mux.Config{Plain: true}, muxtest.AdmitAll(table)); err == nil {
				server <- s
			}
		}
	}()
	conn, err := mux.Dial(tb.Context(), a, mux.Trust{Plain: true})
	if err != nil {
		tb.Fatal(err)
	}
	s, err := mux.Connect(tb.Context(), conn, mux.Config{}, wire.Hello{Role: wire.RoleClient}, nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	accepted := <-server
	tb.Cleanup(func() {
		s.Close()
		if accepted != nil {
			accepted.Close()
		}
		l.Close()
	})
	return s
}

var benchTable = mux.Table{
	"get": mux.Unary(func(_ context.Context, _ *mux.Peer, r wire.JobRequest) (wire.JobRequest, error) { return r, nil }),
	"log": func(_ context.Context, st *mux.Stream) error {
		var size int
		if err := st.Body(&size); err != nil {
			return err
		}
		d := wire.Data{Time: time.Now(), Stream: wire.Stdout, Bytes: make([]byte, size)}
		for {
			if err := st.SendData(d); err != nil {
				return err
			}
			d.Offset += int64(size)
		}
	},
}

func BenchmarkCall(b *testing.B) {
	s := unixPair(b, benchTable)
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		took := make([]time.Duration, 0, 1<<16)
		for b.Loop() {
			began := time.Now()
			var reply wire.JobRequest
			if err := s.Call(b.Context(), "get", wire.JobRequest{ID: "01JDABCDEF"}, &reply); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(32)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := s.Call(b.Context(), "get", wire.JobRequest{ID: "01JDABCDEF"}, nil); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func BenchmarkLogStream(b *testing.B) {
	for _, size := range []int{256, wire.MaxData} {
		b.Run(map[int]string{256: "lines256B", wire.MaxData: "data16KiB"}[size], func(b *testing.B) {
			s := unixPair(b, benchTable)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			st, err := s.Open(ctx, "log", size)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := st.Recv(); err != nil {
					b.Fatal(err)
				}
			}
			cancel()
			for {
				if _, err := st.Recv(); err != nil {
					if errors.Is(err, io.EOF) {
						b.Fatal("the stream ended by itself")
					}
					break
				}
			}
		})
	}
}

// BenchmarkSession is what a command pays before its first call: dial, TLS on
// TCP, hello.
func BenchmarkSession(b *testing.B) {
	cert := withCertificate(muxtest.NewAuthority(b).Issue(b, muxtest.Leaf{}))
	cert.Plain = true
	tcp := accept(b, cert, benchTable)
	unix := mux.Address{Network: "unix", Path: filepath.Join(b.TempDir(), "s")}
	l, err := mux.Listen(b.Context(), unix, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	serve(b, l, mux.Config{}, benchTable)
	pin := mux.Trust{Pins: []string{mux.Fingerprint(cert.TLS.Certificates[0].Leaf)}}
	for _, c := range []struct {
		name  string
		addr  mux.Address
		trust mux.Trust
	}{{"unix", unix, mux.Trust{}}, {"plain", tcp.addr, mux.Trust{Plain: true}}, {"TLS", tcp.addr, pin}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s, err := dialSession(b.Context(), c.addr, c.trust)
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}

// BenchmarkLogStreamTCP is BenchmarkLogStream's larger one over TCP.
func BenchmarkLogStreamTCP(b *testing.B) {
	cert := withCertificate(muxtest.NewAuthority(b).Issue(b, muxtest.Leaf{}))
	cert.Plain = true
	tcp := accept(b, cert, benchTable)
	for name, trust := range map[string]mux.Trust{"plain": {Plain: true}, "TLS": {SkipVerify: true}} {
		b.Run(name, func(b *testing.B) {
			s, err := dialSession(b.Context(), tcp.addr, trust)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			b.SetBytes(wire.MaxData)
			b.ReportAllocs()
			st, err := s.Open(b.Context(), "log", wire.MaxData)
			if err != nil {
				b.Fatal(err)
			}
			defer st.Close()
			for b.Loop() {
				if _, err := st.Recv(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNewcomer is a connection over TCP with TLS that says what is no hello: how
// much it has the accepting side allocate, and hold while it says nothing.
func BenchmarkNewcomer(b *testing.B) {
	cfg := withCertificate(muxtest.NewAuthority(b).Issue(b, muxtest.Leaf{}))
	for name, text := range map[string]string{"silent": "", "rubbish": "GET / HTTP/1.1\r\n\r\n"} {
		b.Run(name, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			const most = 200
			var held, made float64
			var before, after runtime.MemStats
			dialed, accepted := make([]net.Conn, most), make([]net.Conn, most)
			for b.Loop() {
				b.StopTimer()
				for i := range most {
					if dialed[i], err = net.Dial("tcp", l.Addr().String()); err != nil {
						b.Fatal(err)
					}
					if accepted[i], err = l.Accept(); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&before)
				b.StartTimer()
				var all sync.WaitGroup
				for _, conn := range accepted {
					all.Go(func() { mux.Accept(context.Background(), conn, cfg, muxtest.AdmitAll(nil)) })
				}
				b.StopTimer()
				time.Sleep(20 * time.Millisecond) // all of them wait for the first byte
				runtime.ReadMemStats(&after)
				held += float64(after.HeapAlloc+after.StackInuse) - float64(before.HeapAlloc+before.StackInuse)
				b.StartTimer()
				for _, conn := range dialed {
					io.WriteString(conn, text)
					conn.Close()
				}
				all.Wait()
				b.StopTimer()
				runtime.ReadMemStats(&after)
				made += float64(after.TotalAlloc - before.TotalAlloc)
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*most), "us/each")
			b.ReportMetric(held/float64(b.N*most), "B-held/each")
			b.ReportMetric(made/float64(b.N*most), "B-made/each")
		})
	}
}
