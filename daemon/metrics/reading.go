package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/waypointd/waypoint/mux/wire"
)

// Why is why a queued job waits.
type Why string

// All reasons there are.
const (
	ForRunner     Why = "no_runner"  // no runner that takes jobs matches
	ForPlace      Why = "no_place"   // one matches, and is busy or about to be given it
	ForRoom       Why = "reserve"    // the store has only its reserve left
	ForDependency Why = "dependency" //
	ForSerial     Why = "serialized" // another deploy, release or destroy of the app and workspace
	ForSingleton  Why = "singleton"  //
)

var (
	whys         = []Why{ForRunner, ForPlace, ForRoom, ForDependency, ForSerial, ForSingleton}
	runnerStates = []wire.RunnerState{wire.Pending, wire.Preadopted, wire.Adopted, wire.Rejected}
	activeStates = []wire.State{wire.Assigned, wire.Running}

	// shares of a token's life. A token is renewed at a third of it, so one that has
	// less left could not be.
	shares = map[string]float64{"0.25": .25, "0.1": .1}
)

// Snapshot is what is, at the moment of a scrape.
type Snapshot struct {
	Queue  map[Why]Waiting
	Active map[wire.State]int // jobs

	Sessions int
	Runners  map[wire.RunnerState]int // on record
	Online   map[wire.RunnerState]int // of these
	Admitted int                      // of those online: they may have jobs
	Taking   int                      // of those admitted: not drained
	Places   int                      // for jobs, of those
	Taken    int                      // of these places

	Tokens []Token // in use by the admitted runners of this server; those that expire

	StoreFull  bool // refuses for want of room
	StoreShort bool // has its reserve left
	StoreSize  int64
	StoreFree  int64 // with Reserve, where there is one
	Reserve    int64
}

// Waiting are queued jobs.
type Waiting struct {
	Jobs   int
	Oldest time.Time // when the first of them was queued; zero: none
}

// Token is when a token was made and until when it is good.
type Token struct{ Issued, Expiry time.Time }

// reading is a Snapshot as it is told. It is of one scrape at a time.
type reading struct {
	queue, oldest       *prometheus.GaugeVec
	active              *prometheus.GaugeVec
	sessions            *prometheus.GaugeVec
	runners, online     *prometheus.GaugeVec
	admitted, taking    *prometheus.GaugeVec
	places, taken       *prometheus.GaugeVec
	expiry, low         *prometheus.GaugeVec
	full, short         *prometheus.GaugeVec
	size, free, reserve *prometheus.GaugeVec
}

func newReading(r *prometheus.Registry) *reading {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	return &reading{
		queue:    gauge("queue_jobs", "Queued jobs of the store, by why they wait.", "why"),
		oldest:   gauge("queue_oldest_seconds", "Age of the oldest of them since its submit, 0 where there is none.", "why"),
		active:   gauge("jobs_active", "Jobs of the store that a runner has.", "state"),
		sessions: gauge("sessions", "Connections of this server."),
		runners:  gauge("runners", "Runners on record, by the operators' decision.", "state"),
		online:   gauge("runners_online", "Of them, those that are connected.", "state"),
		admitted: gauge("runners_admitted", "Of those connected, those that may have jobs: their token is usable."),
		taking:   gauge("runners_taking", "Of those, the ones that take jobs: they are not drained."),
		places:   gauge("runner_places", "Jobs that those can run at once."),
		taken:    gauge("runner_places_taken", "Jobs that those have."),
		expiry: gauge("runner_token_expiry_timestamp_seconds",
			"The nearest expiry of a token that an admitted runner of this server uses; absent where none expires."),
		low: gauge("runner_tokens_low", "Tokens in use with less than that share of their life left; at a third they should have been renewed.",
			"life_left"),
		full:    gauge("store_full", "Whether the store refuses changes for want of room, or did a moment ago."),
		short:   gauge("store_reserve_left", "Whether the store has only its reserve left, so that no new work is taken."),
		size:    gauge("store_size_bytes", "The store's files, or its database."),
		free:    gauge("store_free_bytes", "What is free for the store, the reserve included; absent where there is none."),
		reserve: gauge("store_reserve_bytes", "What new work leaves free; absent where there is no reserve."),
	}
}

// set makes snap what is told.
func (r *reading) set(snap Snapshot, now time.Time) {
	for _, why := range whys {
		w, age := snap.Queue[why], 0.0
		if w.Jobs > 0 {
			age = max(0, now.Sub(w.Oldest).Seconds())
		}
		r.queue.WithLabelValues(string(why)).Set(float64(w.Jobs))
		r.oldest.WithLabelValues(string(why)).Set(age)
	}
	for _, state := range activeStates {
		r.active.WithLabelValues(string(state)).Set(float64(snap.Active[state]))
	}
	for _, state := range runnerStates {
		r.runners.WithLabelValues(string(state)).Set(float64(snap.Runners[state]))
		r.online.WithLabelValues(string(state)).Set(float64(snap.Online[state]))
	}
	one := func(v *prometheus.GaugeVec, n int) { v.WithLabelValues().Set(float64(n)) }
	one(r.sessions, snap.Sessions)
	one(r.admitted, snap.Admitted)
	one(r.taking, snap.Taking)
	one(r.places, snap.Places)
	one(r.taken, snap.Taken)
	r.setTokens(snap.Tokens, now)
	yes := func(v *prometheus.GaugeVec, is bool) {
		n := 0
		if is {
			n = 1
		}
		one(v, n)
	}
	yes(r.full, snap.StoreFull)
	yes(r.short, snap.StoreShort)
	r.size.WithLabelValues().Set(float64(snap.StoreSize))
	r.free.Reset()
	r.reserve.Reset()
	if snap.Reserve > 0 {
		r.free.WithLabelValues().Set(float64(snap.StoreFree))
		r.reserve.WithLabelValues().Set(float64(snap.Reserve))
	}
}

func (r *reading) setTokens(tokens []Token, now time.Time) {
	r.expiry.Reset()
	var nearest time.Time
	low := map[string]int{}
	for _, t := range tokens {
		if nearest.IsZero() || t.Expiry.Before(nearest) {
			nearest = t.Expiry
		}
		for name, share := range shares {
			if t.Expiry.Sub(now).Seconds() < share*t.Expiry.Sub(t.Issued).Seconds() {
				low[name]++
			}
		}
	}
	for name := range shares {
		r.low.WithLabelValues(name).Set(float64(low[name]))
	}
	if !nearest.IsZero() {
		r.expiry.WithLabelValues().Set(float64(nearest.Unix()))
	}
}
