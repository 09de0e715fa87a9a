package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/mux/wire"
)

// scraped is where a server tells its metrics.
type scraped struct {
	t      *testing.T
	url    string
	client *http.Client
}

func metricsOf(t *testing.T, s *daemontest.Server) scraped {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.ServeMetrics(l))
	return scraped{t, "http://" + l.Addr().String(), http.DefaultClient}
}

func (o scraped) get(method, path string) (int, string) {
	o.t.Helper()
	req, err := http.NewRequestWithContext(o.t.Context(), method, o.url+path, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	res, err := o.client.Do(req)
	if err != nil {
		o.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// scrape reads the metrics as Prometheus does.
func (o scraped) scrape() map[string]*dto.MetricFamily {
	o.t.Helper()
	code, body := o.get(http.MethodGet, "/metrics")
	if code != http.StatusOK {
		o.t.Fatalf("metrics: %d %s", code, body)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		o.t.Fatalf("metrics are no valid text: %v", err)
	}
	return families
}

// value is that of the series of a family with these labels, a histogram's its
// count; false: there is none.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) (float64, bool) {
	for _, m := range families[name].GetMetric() {
		var have []string
		for _, l := range m.GetLabel() {
			have = append(have, l.GetName()+"="+l.GetValue())
		}
		if !slices.Equal(have, labels) {
			continue
		}
		switch {
		case m.Histogram != nil:
			return float64(m.Histogram.GetSampleCount()), true
		case m.Counter != nil:
			return m.Counter.GetValue(), true
		default:
			return m.Gauge.GetValue(), true
		}
	}
	return 0, false
}

// await scrapes until a series has a value: an answer is a second old at most.
func (o scraped) await(want float64, name string, labels ...string) map[string]*dto.MetricFamily {
	o.t.Helper()
	for end := time.Now().Add(daemontest.Patience); ; time.Sleep(50 * time.Millisecond) {
		families := o.scrape()
		is, ok := value(families, name, labels...)
		if ok && is == want {
			return families
		}
		if time.Now().After(end) {
			o.t.Fatalf("%s %v is %v (%v), want %v", name, labels, is, ok, want)
		}
	}
}

// What has happened is counted, what is is told, and nothing names anybody.
func TestMetrics(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Metrics: true})
	at := metricsOf(t, s)
	c := s.Client(t)
	r := s.Adopted(t, "one-of-a-kind", nil)
	submit := func(spec wire.JobSpec) wire.Job {
		t.Helper()
		jobs, err := c.Submit(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		return jobs[0]
	}
	job := submit(run())
	r.MustFinish(r.MustStart().JobRef, "twelve bytes", daemontest.Succeeded())
	if _, err := c.Wait(t.Context(), job.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Job(t.Context(), "no-such-job"); wire.KindOf(err) != wire.NotFound {
		t.Fatalf("get what is not there: %v", err)
	}
	nobodys := run()
	nobodys.Project = "a-project-with-a-name"
	nobodys.Target = wire.Target{Labels: map[string]string{"zone": "nowhere"}}
	submit(nobodys)

	families := at.await(1, "waypoint_queue_jobs", "why=no_runner")
	for _, want := range []struct {
		is     float64
		name   string
		labels []string
	}{
		{1, "waypoint_jobs_ended_total", []string{"operation=run", "reason=", "state=success"}},
		{0, "waypoint_jobs_ended_total", []string{"operation=deploy", "reason=runner_lost", "state=error"}},
		{0, "waypoint_jobs_lost_total", []string{"kind=remote"}},
		{1, "waypoint_job_assign_wait_seconds", nil},
		{1, "waypoint_job_start_wait_seconds", nil},
		{1, "waypoint_job_run_seconds", []string{"operation=run"}},
		{12, "waypoint_log_stored_bytes_total", nil},
		{1, "waypoint_calls_failed_total", []string{"kind=not_found"}},
		{0, "waypoint_queue_jobs", []string{"why=no_place"}},
		{0, "waypoint_jobs_active", []string{"state=running"}},
		{1, "waypoint_runners", []string{"state=adopted"}},
		{1, "waypoint_runners_online", []string{"state=adopted"}},
		{1, "waypoint_runners_admitted", nil},
		{1, "waypoint_runners_taking", nil},
		{0, "waypoint_runner_tokens_low", []string{"life_left=0.25"}},
		{1, "waypoint_read_success", nil},
		{1, "waypoint_build_info", []string{"version=waypoint test"}},
	} {
		if is, ok := value(families, want.name, want.labels...); !ok || is != want.is {
			t.Errorf("%s %v is %v (%v), want %v", want.name, want.labels, is, ok, want.is)
		}
	}
	for _, name := range []string{
		"waypoint_store_commit_seconds", "waypoint_store_commit_callers", "waypoint_report_append_seconds",
		"waypoint_store_size_bytes", "waypoint_runner_token_expiry_timestamp_seconds", "go_goroutines", "process_open_fds",
	} {
		if is, _ := value(families, name); is <= 0 {
			t.Errorf("%s is %v", name, is)
		}
	}
	_, text := at.get(http.MethodGet, "/metrics")
	for _, secret := range []string{"one-of-a-kind", "a-project-with-a-name", "nowhere", job.ID} {
		if strings.Contains(text, secret) {
			t.Errorf("the metrics name %q", secret)
		}
	}
}

// Each reason to wait has its jobs, and the age of the oldest; so have the states of
// jobs and runners.
func TestMetricsOfWaiting(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Metrics: true, AckTimeout: time.Hour, Lease: time.Hour})
	at := metricsOf(t, s)
	c := s.Client(t)
	busy := s.Adopted(t, "busy", map[string]string{"zone": "a"})
	given := s.Adopted(t, "given", map[string]string{"zone": "b"})
	connected(t, s, "pending", nil)
	connected(t, s, "preadopted", map[string]string{"zone": "c"}, s.Token(t, wire.RunnerTokenRequest{}))
	connected(t, s, "rejected", nil)
	reject(t, c, "rejected")
	in := func(zone string) wire.Target { return wire.Target{Labels: map[string]string{"zone": zone}} }
	job := func(edit func(*wire.JobSpec)) wire.Job {
		t.Helper()
		return submit(t, c, run(func(j *wire.JobSpec) { j.Target = in("a") }, edit))[0]
	}
	destroy := func(j *wire.JobSpec) { j.Operation, j.Project, j.App = wire.OpDestroy, "shop", "web" }
	first := job(func(j *wire.JobSpec) { destroy(j); j.Singleton = "one" })
	busy.MustStart()
	s.AwaitJob(t, first.ID, running)
	job(func(j *wire.JobSpec) { j.Target = in("b") })
	given.MustAssign()
	job(func(j *wire.JobSpec) { j.DependsOn = []string{first.ID} })
	job(destroy)
	job(func(j *wire.JobSpec) { j.Singleton = "one" })
	job(func(*wire.JobSpec) {})
	job(func(j *wire.JobSpec) { j.Target = in("nowhere") })
	waiting := func(families map[string]*dto.MetricFamily, want map[string]float64) {
		t.Helper()
		for _, why := range []string{"dependency", "serialized", "singleton", "no_place", "no_runner", "reserve"} {
			if is, ok := value(families, "waypoint_queue_jobs", "why="+why); !ok || is != want[why] {
				t.Errorf("%v jobs wait for %s, want %v", is, why, want[why])
			}
			if oldest, ok := value(families, "waypoint_queue_oldest_seconds", "why="+why); !ok || (oldest > 0) != (want[why] > 0) {
				t.Errorf("the oldest of those for %s has waited for %v s", why, oldest)
			}
		}
	}
	families := at.await(1, "waypoint_queue_jobs", "why=no_runner")
	waiting(families, map[string]float64{"dependency": 1, "serialized": 1, "singleton": 1, "no_place": 1, "no_runner": 1})
	for _, state := range []string{"pending", "preadopted", "rejected"} {
		if is, ok := value(families, "waypoint_runners", "state="+state); !ok || is != 1 {
			t.Errorf("%v runners on record are %s (%v)", is, state, ok)
		}
	}
	for _, want := range []struct {
		is            float64
		name, labeled string
	}{
		{2, "waypoint_runners", "state=adopted"},
		{2, "waypoint_runners_online", "state=adopted"},
		{1, "waypoint_runners_online", "state=pending"},
		{1, "waypoint_runners_online", "state=preadopted"},
		{1, "waypoint_jobs_active", "state=running"},
		{1, "waypoint_jobs_active", "state=assigned"},
		{0, "waypoint_store_reserve_left", ""},
		{3, "waypoint_runner_places", ""},
		{2, "waypoint_runner_places_taken", ""},
	} {
		var labels []string
		if want.labeled != "" {
			labels = []string{want.labeled}
		}
		if is, ok := value(families, want.name, labels...); !ok || is != want.is {
			t.Errorf("%s %s is %v (%v), want %v", want.name, want.labeled, is, ok, want.is)
		}
	}
	const all = 1 << 60 // bytes, more than any disk has free
	s.Reload(func(c *daemon.Config) { c.StoreReserve = all })
	waiting(at.await(1, "waypoint_store_reserve_left"), map[string]float64{"dependency": 1, "serialized": 1, "singleton": 1, "reserve": 2})
}

// Connections are counted, and those that find no place.
func TestMetricsOfConnections(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Metrics: true, Limits: daemon.Limits{SessionsPerPeer: 2}})
	at := metricsOf(t, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Serve(l)()
	var last net.Conn
	for range 3 {
		if last, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		defer last.Close()
	}
	last.SetReadDeadline(time.Now().Add(daemontest.Patience))
	if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("one too many: %v", err)
	}
	families := at.await(2, "waypoint_sessions")
	if is, ok := value(families, "waypoint_connections_refused_total", "reason=too_many_sessions"); !ok || is != 1 {
		t.Errorf("%v are counted as refused (%v)", is, ok)
	}
	if code, body := at.get(http.MethodGet, "/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d %q", code, body)
	}
	at.await(1, "waypoint_probes_total", "outcome=passed")
}

// Of several servers over PostgreSQL each counts what it has done, and tells the
// queue of all.
func TestMetricsOfServers(t *testing.T) {
	list, _ := servers(t, 2, daemon.Config{Metrics: true})
	a, b := list[0], list[1]
	r := a.Adopted(t, "r1", nil)
	atA, atB := metricsOf(t, a.Server), metricsOf(t, b.Server)
	job := submit(t, b.Client(t), run())[0]
	r.MustFinish(r.MustStart().JobRef, "twelve bytes", daemontest.Succeeded())
	b.AwaitJob(t, job.ID, ended)
	submit(t, b.Client(t), run(func(j *wire.JobSpec) { j.Target = wire.Target{Labels: map[string]string{"zone": "nowhere"}} }))
	for at, count := range map[*scraped]float64{&atA: 1, &atB: 0} {
		families := at.await(1, "waypoint_queue_jobs", "why=no_runner")
		for name, labels := range map[string][]string{
			"waypoint_jobs_ended_total": {"operation=run", "reason=", "state=success"}, "waypoint_job_run_seconds": {"operation=run"},
		} {
			if is, ok := value(families, name, labels...); !ok || is != count {
				t.Errorf("%s is %v (%v), want %v", name, is, ok, count)
			}
		}
		for _, name := range []string{"waypoint_store_commit_seconds", "waypoint_store_size_bytes", "waypoint_read_success"} {
			if is, _ := value(families, name); is <= 0 {
				t.Errorf("%s is %v", name, is)
			}
		}
	}
}

// A job whose runner has lost it is counted, and so is what comes of it late.
func TestMetricsOfLostJob(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Metrics: true})
	at := metricsOf(t, s)
	c := s.Client(t)
	r := s.Adopted(t, "one", nil)
	jobs, err := c.Submit(t.Context(), run())
	if err != nil {
		t.Fatal(err)
	}
	ref := r.MustStart().JobRef
	r.Disconnect()
	r.MustConnect()
	r.MustBegin() // and has nothing
	if _, err := c.Wait(t.Context(), jobs[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := r.FinishLate(ref, "", daemontest.Succeeded()); err != nil {
		t.Fatal(err)
	}
	families := at.await(1, "waypoint_late_results_total")
	if lost, _ := value(families, "waypoint_jobs_lost_total", "kind=remote"); lost != 1 {
		t.Errorf("%v jobs are counted as lost", lost)
	}
}

// There are two pages, for who reads them, and nothing else.
func TestMetricsPages(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Metrics: true})
	at := metricsOf(t, s)
	if code, body := at.get(http.MethodGet, "/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %q", code, body)
	}
	for _, c := range []struct {
		method, path string
		code         int
	}{
		{http.MethodPost, "/metrics", http.StatusMethodNotAllowed},
		{http.MethodDelete, "/healthz", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodGet, "/debug/pprof/", http.StatusNotFound},
		{http.MethodHead, "/metrics", http.StatusOK},
	} {
		if code, _ := at.get(c.method, c.path); code != c.code {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, code, c.code)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at.url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("x", 64<<10))
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
		if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("a header of 64 KiB: %s", res.Status)
		}
	}
}

// TestMetricsOnSocket: on a Unix socket the pages are the same.
func TestMetricsOnSocket(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Metrics: true})
	path := filepath.Join(t.TempDir(), "m")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	stop := s.ServeMetrics(l)
	defer stop()
	defer transport.CloseIdleConnections()
	at := scraped{t, "http://waypoint", &http.Client{Transport: transport}}
	if code, body := at.get(http.MethodGet, "/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %q", code, body)
	}
	if v, ok := value(at.scrape(), "waypoint_read_success"); !ok || v != 1 {
		t.Errorf("waypoint_read_success is %v, %v", v, ok)
	}
}

const contributed = "../contrib/prometheus"

// TestMetricsOfRules: whatever the alerts and the dashboard ask for is there,
// with the labels and the values that they ask for.
func TestMetricsOfRules(t *testing.T) {
	s := daemontest.Start(t, daemon.Config{Metrics: true})
	at := metricsOf(t, s)
	s.Adopted(t, "one", nil)
	families := at.await(1, "waypoint_runners_admitted")

	var panels struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	data, err := os.ReadFile(filepath.Join(contributed, "grafana.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &panels); err != nil {
		t.Fatalf("grafana.json: %v", err)
	}
	expressions := map[string]string{}
	for _, p := range panels.Panels {
		for i, target := range p.Targets {
			expressions[fmt.Sprintf("panel %q, %d", p.Title, i)] = target.Expr
		}
	}
	data, err = os.ReadFile(filepath.Join(contributed, "waypoint.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`(?m)^      - alert: (\w+)\n        expr: (.*)$`).FindAllStringSubmatch(string(data), -1)
	if n := strings.Count(string(data), "alert:"); n != len(rules) || n < 5 {
		t.Fatalf("%d alerts, %d of them read", n, len(rules))
	}
	for _, rule := range rules {
		expressions["alert "+rule[1]] = rule[2]
	}

	selector := regexp.MustCompile(`\b((?:waypoint|process|go)_\w+)(?:\{([^}]*)\})?`)
	matcher := regexp.MustCompile(`(\w+)(=~|=)"([^"]*)"`)
	asked := 0
	for where, expr := range expressions {
		if strings.Count(expr, "(") != strings.Count(expr, ")") {
			t.Errorf("%s: brackets do not match: %s", where, expr)
		}
		for _, m := range selector.FindAllStringSubmatch(expr, -1) {
			asked++
			name := m[1]
			family := families[name]
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base, cut := strings.CutSuffix(name, suffix)
				if family == nil && cut && families[base].GetType() == dto.MetricType_HISTOGRAM {
					family = families[base]
				}
			}
			if family == nil {
				t.Errorf("%s asks for %s, which there is not", where, name)
				continue
			}
			for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
				if l[1] == "instance" || l[1] == "job" { // Prometheus' own
					continue
				}
				if !slices.ContainsFunc(family.GetMetric(), func(m *dto.Metric) bool {
					return slices.ContainsFunc(m.GetLabel(), func(have *dto.LabelPair) bool {
						return have.GetName() == l[1] && have.GetValue() == l[3]
					})
				}) {
					t.Errorf("%s asks for %s with %s=%q, which there never is", where, name, l[1], l[3])
				}
			}
		}
	}
	if asked < 30 {
		t.Errorf("only %d metrics were found in the expressions", asked)
	}
}
