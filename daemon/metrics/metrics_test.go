package metrics

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/waypointd/waypoint/mux/wire"
)

func parsed(t *testing.T, page []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(page)))
	if err != nil {
		t.Fatalf("no valid text: %v", err)
	}
	return families
}

// Every end that a job can have has its series from the start; one that is not
// known here makes no new one.
func TestEnded(t *testing.T) {
	m := New("test")
	families := func() *dto.MetricFamily {
		_, page := m.page(t.Context(), Source{Read: func(context.Context) (Snapshot, error) { return Snapshot{}, nil }})
		return parsed(t, page)["waypoint_jobs_ended_total"]
	}
	before := len(families().GetMetric())
	m.Ended(wire.Job{Operation: "knit", State: "warm", Reason: "a name"}, wire.KindRemote)
	m.Ended(wire.Job{Operation: wire.OpRun, State: wire.Success}, wire.KindRemote)
	after := families()
	if n := len(after.GetMetric()); n != before {
		t.Errorf("%d series became %d", before, n)
	}
	sum := 0.
	for _, metric := range after.GetMetric() {
		sum += metric.GetCounter().GetValue()
	}
	if sum != 2 {
		t.Errorf("%v ends are counted, of two", sum)
	}
}

// Nothing is counted where nobody asked for it, and nobody has to look whether.
func TestNobodyCounts(t *testing.T) {
	var m *Metrics
	m.Ended(wire.Job{}, wire.KindLocal)
	m.Late()
	m.Assigned(time.Second)
	m.Started(time.Second)
	m.Committed(1, time.Second)
	m.Appended(1, time.Second)
	m.Refused(TooMany)
	m.Began()
	m.Answered(errors.New("no"))
	m.Probed(nil)
}

// What cannot be read is left out, and nothing is told that was true before.
func TestReadFails(t *testing.T) {
	m := New("test")
	var fails error
	source := Source{Read: func(context.Context) (Snapshot, error) { return Snapshot{Sessions: 3}, fails }}
	_, page := m.page(t.Context(), source)
	if f := parsed(t, page); f["waypoint_sessions"].GetMetric()[0].GetGauge().GetValue() != 3 {
		t.Error("the sessions are not told")
	}
	fails = errors.New("no")
	code, page := m.page(t.Context(), source)
	f := parsed(t, page)
	if code != http.StatusOK || f["waypoint_sessions"] != nil || f["waypoint_queue_jobs"] != nil {
		t.Errorf("%d, and what was before is told again", code)
	}
	if f["waypoint_read_success"].GetMetric()[0].GetGauge().GetValue() != 0 || f["waypoint_jobs_ended_total"] == nil {
		t.Error("it is not told that something is missing, or the counters are missing too")
	}
}

func TestTokens(t *testing.T) {
	m, now := New("test"), time.Now()
	token := func(life, left time.Duration) Token {
		return Token{Issued: now.Add(left - life), Expiry: now.Add(left)}
	}
	source := Source{Read: func(context.Context) (Snapshot, error) {
		return Snapshot{Tokens: []Token{
			token(100*time.Hour, 90*time.Hour), token(100*time.Hour, 20*time.Hour), token(1000*time.Hour, 30*time.Hour),
		}}, nil
	}}
	_, page := m.page(t.Context(), source)
	f := parsed(t, page)
	for _, metric := range f["waypoint_runner_tokens_low"].GetMetric() {
		want := map[string]float64{"0.25": 2, "0.1": 1}[metric.GetLabel()[0].GetValue()]
		if got := metric.GetGauge().GetValue(); got != want {
			t.Errorf("%v: %v tokens, want %v", metric.GetLabel(), got, want)
		}
	}
	if at := f["waypoint_runner_token_expiry_timestamp_seconds"].GetMetric()[0].GetGauge().GetValue(); int64(at) != now.Add(20*time.Hour).Unix() {
		t.Errorf("the nearest expiry is told as %v", at)
	}
}

// However many ask, the server is read for one of them at a time.
func TestOneScrape(t *testing.T) {
	var reading, most atomic.Int32
	begun, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	a := &answer{make: func(context.Context) (int, []byte) {
		n := reading.Add(1)
		defer reading.Add(-1)
		if n > most.Load() {
			most.Store(n)
		}
		once.Do(func() { close(begun) })
		<-release
		return http.StatusOK, []byte("page")
	}}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if code, body := a.get(t.Context()); code != http.StatusOK || string(body) != "page" {
				t.Errorf("%d %q", code, body)
			}
		})
	}
	<-begun
	close(release)
	all.Wait()
	if most.Load() != 1 {
		t.Errorf("%d at a time", most.Load())
	}
}

// A server that does not do what it is for is 503, with why; a note alone is not.
func TestHealth(t *testing.T) {
	for _, c := range []struct {
		notes []string
		err   error
		code  int
		text  string
	}{
		{nil, nil, http.StatusOK, "ok\n"},
		{[]string{"store is full"}, nil, http.StatusOK, "ok\nstore is full\n"},
		{[]string{"store is full"}, errors.New("commit: too late"), http.StatusServiceUnavailable, "commit: too late\nstore is full\n"},
	} {
		code, text := healthOf(t.Context(), Source{Health: func(context.Context) ([]string, error) { return c.notes, c.err }})
		if code != c.code || string(text) != c.text {
			t.Errorf("%v, %v: %d %q", c.notes, c.err, code, text)
		}
	}
}
