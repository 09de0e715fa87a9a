package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// Source is the server that is told of.
type Source struct {
	Read func(context.Context) (Snapshot, error)

	// Health is nil where the server does what it is for. notes are what
	// operators should know all the same.
	Health func(context.Context) (notes []string, err error)
}

// What whoever asks may cost.
const (
	maxConns      = 64
	maxHeader     = 8 << 10 // bytes
	patience      = 5 * time.Second
	idle          = 30 * time.Second
	writeWithin   = 15 * time.Second
	readWithin    = 2 * time.Second // of the store and the fleet, for a scrape
	healthWithin  = 5 * time.Second // of the probe
	answerIsGood  = time.Second     // and told to who asks meanwhile
	lastWordTakes = time.Second     // for answers under way, at the end
)

// Serve answers GET /metrics and GET /healthz on l, which it owns, until ctx
// ends. Nobody is asked who he is.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, from Source, log *slog.Logger) error {
	handler := http.NewServeMux()
	scrape := &answer{make: func(ctx context.Context) (int, []byte) { return m.page(ctx, from) }}
	health := &answer{make: func(ctx context.Context) (int, []byte) { return healthOf(ctx, from) }}
	handler.Handle("GET /metrics", scrape.handler(string(expfmt.NewFormat(expfmt.TypeTextPlain))))
	handler.Handle("GET /healthz", health.handler("text/plain; charset=utf-8"))
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: patience, ReadTimeout: patience, WriteTimeout: writeWithin, IdleTimeout: idle,
		MaxHeaderBytes: maxHeader,
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(over)
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWordTakes)
		defer cancel()
		if server.Shutdown(ending) != nil {
			server.Close()
		}
	})
	err := server.Serve(&bounded{Listener: l, room: make(chan struct{}, maxConns)})
	if stop() {
		return errors.Join(fmt.Errorf("serve metrics: %w", err), server.Close())
	}
	<-over
	return nil
}

// page is all numbers, as text.
func (m *Metrics) page(ctx context.Context, from Source) (int, []byte) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	all := prometheus.Gatherers{m.counted}
	snap, err := from.Read(ctx)
	m.readSuccess.Set(0)
	m.readSeconds.Set(time.Since(began).Seconds())
	if err == nil {
		m.readSuccess.Set(1)
		m.reading.set(snap, time.Now())
		all = append(all, m.read)
	}
	families, err := all.Gather()
	if err != nil && len(families) == 0 {
		return http.StatusInternalServerError, []byte("gather metrics: " + err.Error() + "\n")
	}
	var page bytes.Buffer
	encoder := expfmt.NewEncoder(&page, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return http.StatusInternalServerError, []byte("write metrics: " + err.Error() + "\n")
		}
	}
	return http.StatusOK, page.Bytes()
}

// healthOf is 503 for a server that a new start may heal, and says what is wrong.
func healthOf(ctx context.Context, from Source) (int, []byte) {
	ctx, cancel := context.WithTimeoutCause(ctx, healthWithin, fmt.Errorf("no answer within %s", healthWithin))
	defer cancel()
	notes, err := from.Health(ctx)
	code, first := http.StatusOK, "ok"
	if err != nil {
		code, first = http.StatusServiceUnavailable, err.Error()
	}
	return code, []byte(strings.Join(append([]string{first}, notes...), "\n") + "\n")
}

// answer is made for one who asks at a time, and told to the others.
type answer struct {
	make func(context.Context) (int, []byte)

	mu   sync.Mutex // held while it is made, which is bounded in time
	at   time.Time  // guarded by mu; so are the others
	code int
	body []byte
}

func (a *answer) handler(contentType string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// For all who wait: not only for the one who may leave.
		code, body := a.get(context.WithoutCancel(r.Context()))
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(code)
		w.Write(body)
	})
}

func (a *answer) get(ctx context.Context) (int, []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at.IsZero() || time.Since(a.at) >= answerIsGood {
		a.code, a.body = a.make(ctx)
		a.at = time.Now()
	}
	return a.code, a.body
}

// bounded lets the next connection wait with the kernel while there are as many as may be.
type bounded struct {
	net.Listener
	room chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	b.room <- struct{}{}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.room
		return nil, err
	}
	return &counted{Conn: conn, closed: sync.OnceFunc(func() { <-b.room })}, nil
}

type counted struct {
	net.Conn
	closed func()
}

func (c *counted) Close() error {
	defer c.closed()
	return c.Conn.Close()
}
