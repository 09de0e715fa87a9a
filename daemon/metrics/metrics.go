// Package metrics counts what a server does and tells it to Prometheus. It is the
// only importer of Prometheus' library.
//
// # Counted, and read
//
// What happens is counted where it happens: an addition or two to numbers that
// are there from the start, without a lock, since a job may not cost more for
// being counted. What is (the queue, who is connected) is read when somebody
// asks, in bounded time, for one who asks at a time, and told to whoever asks
// within a second after. Where that cannot be read the counters are told all the
// same, with waypoint_read_success 0.
//
// # Labels
//
// Each label's values are a list in this program. No project, runner, job or
// user is ever one: who scrapes needs no permission, and what they are called is
// nobody's to bound.
//
// A nil *Metrics counts nothing, which is a server without a listener for them.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/waypointd/waypoint/mux/wire"
)

// Metrics are the numbers of one server. Its methods may be called by any
// goroutine.
type Metrics struct {
	counted *prometheus.Registry
	read    *prometheus.Registry // what is in reading
	reading *reading

	ended       map[ending]prometheus.Counter
	endedOther  prometheus.Counter
	lost        map[wire.RunnerKind]prometheus.Counter
	late        prometheus.Counter
	assignWait  prometheus.Histogram
	startWait   prometheus.Histogram
	run         map[wire.Operation]prometheus.Observer
	commit      prometheus.Histogram
	callers     prometheus.Histogram
	appended    prometheus.Histogram
	logBytes    prometheus.Counter
	refused     map[string]prometheus.Counter
	failed      map[string]prometheus.Counter
	streams     prometheus.Gauge
	probes      [2]prometheus.Counter // failed, passed
	readSuccess prometheus.Gauge
	readSeconds prometheus.Gauge
}

type ending struct {
	operation wire.Operation
	state     wire.State
	reason    wire.Reason
}

// other is the label of what is in none of the lists.
const other = "other"

// TooMany is a connection refused since there are as many as may be.
const TooMany = "too_many_sessions"

var (
	operations = []wire.Operation{wire.OpRun, wire.OpBuild, wire.OpDeploy, wire.OpRelease, wire.OpDestroy}
	outcomes   = map[wire.State][]wire.Reason{
		wire.Success: {""},
		wire.Failed: {wire.ReasonFailed, wire.ReasonTimeout, wire.ReasonExpired, wire.ReasonRunnerLost, wire.ReasonDependency,
			wire.ReasonOOM},
		wire.Canceled: {wire.ReasonCanceled, wire.ReasonSuperseded},
	}
	kinds = []wire.Kind{
		wire.BadUsage, wire.NotFound, wire.Denied, wire.Unauthenticated, wire.Expired, wire.Conflict, wire.Timeout,
		wire.TooLarge, wire.Unavailable, wire.Unimplemented, wire.Internal,
	}

	// In seconds. A job's are those of people and of builds; a commit's those of disks.
	jobBuckets    = []float64{.01, .1, .5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400}
	commitBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}
)

// New makes the numbers of a server of a version, which are all told from the
// start: what never happened as 0, so that the first time is an increase.
func New(version string) *Metrics {
	m := &Metrics{counted: prometheus.NewRegistry(), read: prometheus.NewRegistry()}
	m.reading = newReading(m.read)
	m.counted.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.gauge("build_info", "1, for the version of the server.", prometheus.Labels{"version": version}).Set(1)

	ended := m.counters("jobs_ended_total", "Jobs that ended, by operation, state and reason.", "operation", "state", "reason")
	m.ended = map[ending]prometheus.Counter{}
	for _, op := range operations {
		for state, reasons := range outcomes {
			for _, reason := range reasons {
				m.ended[ending{op, state, reason}] = ended.WithLabelValues(string(op), string(state), string(reason))
			}
		}
	}
	m.endedOther = ended.WithLabelValues(other, other, other)
	lost := m.counters("jobs_lost_total",
		"Jobs that ended as runner_lost; local are those of a command line's own runner, which somebody may just have killed.", "kind")
	m.lost = map[wire.RunnerKind]prometheus.Counter{}
	for _, kind := range []wire.RunnerKind{wire.KindRemote, wire.KindLocal} {
		m.lost[kind] = lost.WithLabelValues(string(kind))
	}
	m.late = m.counter("late_results_total", "Results of lost jobs that came after all.")
	m.assignWait = m.histogram("job_assign_wait_seconds", "From the submit of a job to each of its assignments.", jobBuckets)
	m.startWait = m.histogram("job_start_wait_seconds", "From an assignment to the confirmation of its start.", jobBuckets)
	runs := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: "job_run_seconds", Help: "From the start of a job to its end.", Buckets: jobBuckets,
	}, []string{"operation"})
	m.counted.MustRegister(runs)
	m.run = map[wire.Operation]prometheus.Observer{}
	for _, op := range operations {
		m.run[op] = runs.WithLabelValues(string(op))
	}

	m.commit = m.histogram("store_commit_seconds", "Transactions of the store that were committed, from begin to durable.", commitBuckets)
	m.callers = m.histogram("store_commit_callers", "Changes in one transaction of the store.", prometheus.ExponentialBuckets(1, 2, 9))
	m.appended = m.histogram("report_append_seconds", "From what a report of a job brings to its being durable.", commitBuckets)
	m.logBytes = m.counter("log_stored_bytes_total", "Output of jobs that was stored.")

	refused := m.counters("connections_refused_total", "Connections that did not become a session, by reason.", "reason")
	failed := m.counters("calls_failed_total", "Calls that were answered with an error, by its kind.", "kind")
	m.refused, m.failed = map[string]prometheus.Counter{}, map[string]prometheus.Counter{}
	for _, kind := range append([]string{TooMany, other}, texts(kinds)...) {
		m.refused[kind] = refused.WithLabelValues(kind)
	}
	for _, kind := range append([]string{other}, texts(kinds)...) {
		m.failed[kind] = failed.WithLabelValues(kind)
	}
	m.streams = m.gauge("streams", "Calls that are being answered, streams included.", nil)
	probes := m.counters("probes_total", "Probes of the server, the watchdog's among them, by outcome.", "outcome")
	m.probes = [2]prometheus.Counter{probes.WithLabelValues("failed"), probes.WithLabelValues("passed")}
	m.readSuccess = m.gauge("read_success", "Whether what is read for a scrape could be read; where not, it is left out.", nil)
	m.readSeconds = m.gauge("read_seconds", "How long that took the last time.", nil)
	return m
}

const namespace = "waypoint"

func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.counted.MustRegister(v)
	return v
}

func (m *Metrics) counter(name, help string) prometheus.Counter {
	return m.counters(name, help).WithLabelValues()
}

func (m *Metrics) gauge(name, help string, labels prometheus.Labels) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help, ConstLabels: labels})
	m.counted.MustRegister(g)
	return g
}

func (m *Metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
	m.counted.MustRegister(h)
	return h
}

func texts[T ~string](list []T) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = string(v)
	}
	return out
}

// Ended counts a job that has ended, on a runner of that kind.
func (m *Metrics) Ended(job wire.Job, kind wire.RunnerKind) {
	if m == nil {
		return
	}
	if c := m.ended[ending{job.Operation, job.State, job.Reason}]; c != nil {
		c.Inc()
	} else {
		m.endedOther.Inc()
	}
	if job.Reason == wire.ReasonRunnerLost {
		m.lost[kind].Inc()
	}
	if run := m.run[job.Operation]; run != nil && !job.StartedAt.IsZero() {
		run.Observe(job.FinishedAt.Sub(job.StartedAt).Seconds())
	}
}

// Late counts a late result.
func (m *Metrics) Late() {
	if m != nil {
		m.late.Inc()
	}
}

// Assigned counts an assignment, so long after the job's submit.
func (m *Metrics) Assigned(waited time.Duration) {
	if m != nil {
		m.assignWait.Observe(max(0, waited).Seconds())
	}
}

// Started counts a start, so long after its assignment.
func (m *Metrics) Started(waited time.Duration) {
	if m != nil {
		m.startWait.Observe(max(0, waited).Seconds())
	}
}

// Committed counts a transaction of the store: how many changes were in it, and
// what it took.
func (m *Metrics) Committed(callers int, took time.Duration) {
	if m != nil {
		m.commit.Observe(took.Seconds())
		m.callers.Observe(float64(callers))
	}
}

// Appended counts what a report has brought, once it is durable.
func (m *Metrics) Appended(bytes int64, took time.Duration) {
	if m != nil {
		m.logBytes.Add(float64(max(0, bytes)))
		m.appended.Observe(took.Seconds())
	}
}

// Refused counts a connection that was refused: TooMany, or an error's kind.
func (m *Metrics) Refused(reason string) {
	if m != nil {
		count(m.refused, reason)
	}
}

// Began counts a call that is being answered; Answered is its end.
func (m *Metrics) Began() {
	if m != nil {
		m.streams.Inc()
	}
}

// Answered counts the end of a call.
func (m *Metrics) Answered(err error) {
	if m == nil {
		return
	}
	m.streams.Dec()
	if err != nil {
		count(m.failed, string(wire.KindOf(err)))
	}
}

// Probed counts a probe.
func (m *Metrics) Probed(err error) {
	switch {
	case m == nil:
	case err != nil:
		m.probes[0].Inc()
	default:
		m.probes[1].Inc()
	}
}

func count(counters map[string]prometheus.Counter, label string) {
	c := counters[label]
	if c == nil {
		c = counters[other]
	}
	c.Inc()
}
