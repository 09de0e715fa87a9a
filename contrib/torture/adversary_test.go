package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// adversary breaks what a site is made of and mends it. A round is one fault or
// several at once, each for less than the lease. Its own goroutine is the
// caller's; suffered may be asked by others.
type adversary struct {
	s           *site
	n           *network // nil: the network stays whole
	startServer func()
	startAgent  func()
	managed     bool // an agent that is asked to end leaves its jobs to the supervisor
	r           *rand.Rand

	rounds  int
	made    map[string]int
	broken  map[string]rule           // by place
	running []int                     // jobs that ran at each fault
	before  func(ctx context.Context) // called before each round's first fault; nil: nothing

	mu    sync.Mutex
	times []time.Time // of faults, guarded by mu
}

func newAdversary(s *site, seed uint64) *adversary {
	return &adversary{
		s: s, startServer: s.startServer, startAgent: s.startAgent,
		r: rand.New(rand.NewPCG(seed, 0)), made: map[string]int{}, broken: map[string]rule{},
	}
}

// fault is one way to break something.
type fault struct {
	name string
	on   []string // what it breaks; in a round nothing is broken twice
	// strike breaks it and returns what mends it.
	strike func(ctx context.Context) (mend func())
}

// faults are all that there are here.
func (a *adversary) faults() []fault {
	server := victim{"server", func() *process { return a.s.server }, a.startServer}
	agent := victim{"agent", func() *process { return a.s.agent }, a.startAgent}
	var all []fault
	for _, v := range []victim{server, agent} {
		all = append(all,
			fault{"kill -9 " + v.name, []string{v.name}, func(context.Context) func() {
				v.process().kill()
				if a.r.IntN(2) == 0 {
					v.start()
					return func() {}
				}
				return v.start
			}},
			fault{"kill -9 " + v.name + " while it starts", []string{v.name}, func(ctx context.Context) func() {
				v.process().kill()
				v.start()
				pause(ctx, a.s.t, a.r, 0, 80)
				v.process().kill()
				return v.start
			}},
			fault{"SIGSTOP " + v.name, []string{v.name}, func(context.Context) func() {
				v.process().signal(syscall.SIGSTOP)
				return func() { v.process().signal(syscall.SIGCONT) }
			}})
		if v.name == server.name || a.managed {
			all = append(all, fault{"restart " + v.name, []string{v.name}, func(context.Context) func() {
				v.process().signal(syscall.SIGTERM)
				return func() {
					v.process().ended()
					if st := v.process().cmd.ProcessState; !st.Success() && st.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM { // or it had not begun
						a.s.t.Errorf("%s was asked to end, and this is its end: %s\n%s", v.name, st, tail(v.process().log, 2000))
					}
					v.start()
				}
			}})
		}
	}
	all = append(all, fault{"kill -9 both", []string{server.name, agent.name}, func(context.Context) func() {
		server.process().kill()
		agent.process().kill()
		if a.r.IntN(2) == 0 {
			return func() { agent.start(); server.start() }
		}
		return func() { server.start(); agent.start() }
	}})
	if a.n == nil {
		return all
	}
	for _, place := range []string{atRunner, atClient} {
		for _, b := range breaches {
			all = append(all, fault{b.name, []string{onNetwork + place}, func(context.Context) func() { return a.sever(b, place) }})
		}
	}
	return all
}

// onNetwork is in front of a place whose network is broken.
const onNetwork = "network of "

// victim is a process that can be started again.
type victim struct {
	name    string
	process func() *process
	start   func()
}

// sever breaks the network of a place.
func (a *adversary) sever(b breach, place string) (mend func()) {
	t := a.s.t
	t.Helper()
	r := b.rule
	if b.half {
		var err error
		if r, err = a.n.half(place, b.up, b.down); err != nil {
			t.Fatal(err)
		}
	}
	a.broken[place] = r
	a.n.keep(a.broken)
	return func() {
		delete(a.broken, place)
		a.n.keep(a.broken)
	}
}

// run is so many rounds, or rounds for a time. between is called between two
// rounds with everything mended, but not yet come to itself.
func (a *adversary) run(ctx context.Context, all []fault, rounds int, during time.Duration, between func(round int)) {
	begin := time.Now()
	for during == 0 && a.rounds < rounds || during > 0 && time.Since(begin) < during {
		a.round(ctx, all)
		a.rounds++
		between(a.rounds)
	}
}

// round breaks one thing or several at once, and mends them.
func (a *adversary) round(ctx context.Context, all []fault) {
	t := a.s.t
	t.Helper()
	pause(ctx, t, a.r, 10, 250)
	for _, p := range []*process{a.s.server, a.s.agent} {
		if !p.alive() {
			t.Fatalf("%s ended by itself: %v\n%s", p.name, p.err, tail(p.log, 2000))
		}
	}
	if a.before != nil {
		a.before(ctx)
	}
	var mends []func()
	var taken []string
	for range []int{1, 1, 1, 1, 1, 2, 2, 3, 3, 4}[a.r.IntN(10)] {
		f := a.draw(all, taken)
		if f == nil {
			break
		}
		taken = append(taken, f.on...)
		a.made[f.name]++
		a.note()
		a.running = append(a.running, a.s.runningJobs())
		mends = append(mends, f.strike(ctx))
		pause(ctx, a.s.t, a.r, 0, 60)
	}
	if a.r.IntN(8) == 0 {
		pause(ctx, a.s.t, a.r, 700, 2500) // long enough to be missed
	} else {
		pause(ctx, a.s.t, a.r, 20, 600)
	}
	a.r.Shuffle(len(mends), func(i, j int) { mends[i], mends[j] = mends[j], mends[i] })
	for _, mend := range mends {
		mend()
	}
}

// draw is a fault of what is still whole: first of which part, then which, so
// that each part has its share.
func (a *adversary) draw(all []fault, taken []string) *fault {
	parts := []string{"server", "agent"}
	if a.n != nil {
		parts = append(parts, onNetwork+atRunner, onNetwork+atClient)
	}
	part := parts[a.r.IntN(len(parts))]
	var free []int
	for i, f := range all {
		if slices.Contains(f.on, part) && !slices.ContainsFunc(f.on, func(on string) bool { return slices.Contains(taken, on) }) {
			free = append(free, i)
		}
	}
	if len(free) == 0 {
		return nil
	}
	return &all[free[a.r.IntN(len(free))]]
}

// pause is a random time, in milliseconds: the random moment.
func pause(ctx context.Context, t testing.TB, r *rand.Rand, least, most int) {
	t.Helper()
	select {
	case <-time.After(time.Duration(least+r.IntN(most-least)) * time.Millisecond):
	case <-ctx.Done():
		t.Fatal(context.Cause(ctx))
	}
}

// note keeps that something breaks now.
func (a *adversary) note() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.times = append(a.times, time.Now())
}

// suffered reports whether something broke between two moments.
func (a *adversary) suffered(from, to time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	i, _ := slices.BinarySearchFunc(a.times, from, time.Time.Compare)
	return i < len(a.times) && a.times[i].Before(to)
}

// figures says what was done.
func (a *adversary) figures() string {
	var all []string
	total := 0
	for name, n := range a.made {
		all = append(all, fmt.Sprintf("%s %d", name, n))
		total += n
	}
	slices.Sort(all)
	return fmt.Sprintf("%d rounds of %d faults: %s", a.rounds, total, strings.Join(all, ", "))
}

// runningJobs counts the jobs with processes, by their cgroups or, where there
// are none, by their shims.
func (s *site) runningJobs() (n int) {
	if s.cgroup == "" {
		return shimsOf(s.agentState)
	}
	entries, _ := os.ReadDir(s.cgroup)
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(s.cgroup, e.Name(), "cgroup.events")); err == nil && strings.Contains(string(b), "populated 1") {
			n++
		}
	}
	return n
}
