package daemon

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

// The simulation runs the real server and its real store in time that only
// moves when nobody has anything to do, and everything that it is not as
// actors of one seed: clients, runners with what is on their disks, sessions,
// the disk's room, the host's clock. What happens next, and what goes wrong,
// the seed says; so a seed that fails fails again.
//
// # The model
//
// At every moment, of all jobs on record:
//
//   - A job stays on record until it has ended and is of an age that is not kept, and until nothing
//     that has not ended depends on it or is a retry of it; and with it its name: one idempotency
//     key is one job, however often it was submitted.
//   - An end is final: state, reason, time, attempt and length of the output. Only the output of
//     a lost attempt grows, until its late result, which is there once, closes it.
//   - Attempts only grow, and one that runs is the last.
//   - A job is given to whom it is for, and to nobody more than he has room for.
//   - Of a singleton one job at most is active and one waits; of an app one
//     deploy, release or destroy is active.
//   - What is active, or has succeeded, depends on nothing that has not ended, nor on
//     what failed unless it said that it may.
//   - A job whose end was asked for is not handed out again, nor one whose time is over.
//   - Who was rejected, is drained, by an operator or on its host, or has no token that is still
//     good, is handed out nothing.
//   - A job is lost only where its runner does not have it any more, or cannot know
//     whether it had, or has said so, or was not heard of for a whole lease.
//
//   - What was given to a runner that has been forgotten is nobody's until somebody is
//     admitted under its id: it has no result, and is lost when its lease is over; once it is
//     the runner's again, it is lost only as that of others.
//   - A token that was granted stays on record until it has been stored.
//   - No moment of a job is before an earlier one, however the clock is set.
//   - A runner that nobody hears of keeps what it was given for a lease, and not longer; what is
//     queued until a moment of the clock is ended then, and not before.
//
// Over the history:
//
//   - What was acknowledged to a client is on record after every crash; who asked
//     by force for an end was answered with one.
//   - Of each job one attempt at most is ever started, and of no job whose end is
//     on record the start is confirmed.
//   - A job succeeds only where its runner said so; a result that was said to be
//     recorded is the one on record.
//   - Output on record is what the attempt wrote, from the first byte on, each once
//     and in order: for a success all of it, and never less than the runner was told is
//     safe or than a follower has read. A result that comes before it is refused.
//   - The input of a job is there when it is started.
//   - What the runner of a lost attempt says of it late is taken, while the job is on record.
//   - Whatever a runner is told to drop does not run on record.
//   - A runner whose session has begun has been told of every end of what it runs or is to
//     start, and of each that was asked for; within a heartbeat what it runs is on record so.
//   - What is assigned to a runner that is there is started, or taken back, in time.
//   - What a session says whose runner works on another changes nothing, nor what a runner
//     says of an attempt that is not its own any more, nor output that something is left out of.
//   - Once nothing goes wrong any more every job ends and no runner keeps anything; and
//     a runner that is adopted, or is adopted then, once, gets jobs and keeps the right to them.
//
// # What is simulated
//
// Everything below the frames of a session is real. Sessions are queues whose ends
// die together, or one long before the other; what was on its way arrives or does
// not. The server dies before any commit or between one and its answers, and
// the next one opens what was committed. The host's clock is set, either way, by
// seconds or years, while a server lives and before the next one starts. A runner's agent
// dies, or hands over, and its jobs go on; its host dies and its jobs with it, and what was written
// last may be missing then; its disk is lost. It comes back as somebody else, under its id. Operators adopt, reject, forget and
// drain; tokens expire, are renewed, and granted to runners that do not store them.
// The store refuses for want of room. Requests are sent twice, answers are lost.
// A session that the server has given up delivers what was on its way. Some servers
// remove what has ended soon, beside those who still ask for it and runners that report it.
//
// SIM_DURATION is how long to look for a seed that fails; SIM_SEED is one to be
// told of in full.

// simTime is how long seeds are tried unless SIM_DURATION says otherwise.
func simTime(t *testing.T) time.Duration {
	if text := os.Getenv("SIM_DURATION"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("SIM_DURATION: %v", err)
		}
		return d
	}
	return 4 * time.Second // make torture is for more
}

func TestSimulation(t *testing.T) {
	if text := os.Getenv("SIM_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("SIM_SEED: %v", err)
		}
		g := newGround(t)
		w := g.run(t, seed)
		t.Log(w.story(len(w.history)))
		if len(w.wrong) > 0 {
			t.Errorf("SIM_SEED=%d: %s", seed, strings.Join(w.wrong, "\n"))
		}
		return
	}
	g := newGround(t)
	first := rand.Uint64()
	var next, failed atomic.Uint64
	var mu sync.Mutex
	total := map[string]int{}
	over := time.Now().Add(simTime(t))
	t.Run("seeds", func(t *testing.T) {
		for n := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				for time.Now().Before(over) && failed.Load() == 0 {
					w := g.run(t, first+next.Add(1))
					mu.Lock()
					for what, n := range w.count {
						total[what] += n
					}
					mu.Unlock()
					if len(w.wrong) > 0 {
						failed.Add(1)
						t.Errorf("SIM_SEED=%d: %s\n%s", w.seed, strings.Join(w.wrong, "\n"), w.story(60))
					}
				}
			})
		}
	})
	var said []string
	for what, n := range total {
		said = append(said, fmt.Sprintf("%s %d", what, n))
	}
	slices.Sort(said)
	t.Logf("%d seeds from %d: %s", next.Load(), first+1, strings.Join(said, ", "))
	for _, what := range []string{"job", "crash", "life", "lost", "success", "canceled", "refused for room", "adopt", "reject", "forget", "grant", "late frame", "late result", "clock set", "removed", "input", "given back"} {
		enough := uint64(100)
		if what == "late result" { // takes a runner that is away for a lease, and comes back with its disk
			enough = 1000
		}
		if failed.Load() == 0 && total[what] == 0 && next.Load() > enough {
			t.Errorf("of %q there was none: the simulation has proved little", what)
		}
	}
}

// A seed is a history: what is random of a server (ids, keys, the order of
// maps, who of two goroutines is first) changes nothing of it.
func TestSimulationReplays(t *testing.T) {
	g := newGround(t)
	n := 40
	if testing.Short() {
		n = 2
	}
	for seed := range uint64(n) {
		one, two := g.run(t, seed), g.run(t, seed)
		if len(one.wrong) > 0 {
			t.Fatalf("SIM_SEED=%d: %s\n%s", seed, strings.Join(one.wrong, "\n"), one.story(60))
		}
		if slices.Equal(one.history, two.history) {
			continue
		}
		for i := range one.history {
			if i >= len(two.history) || one.history[i] != two.history[i] {
				t.Fatalf("seed %d: two histories part at line %d:\n%s\n\nand\n%s", seed, i,
					strings.Join(one.history[max(0, i-10):min(i+4, len(one.history))], "\n"),
					strings.Join(two.history[max(0, min(i, len(two.history))-1):min(i+4, len(two.history))], "\n"))
			}
		}
		t.Fatalf("seed %d: one history goes on where the other ends", seed)
	}
}

// ground is what all seeds begin with: a store with a token for each runner.
type ground struct {
	dir    string
	image  map[string][]byte // files of a state directory
	keys   []ed25519.PrivateKey
	tokens []string
	worlds atomic.Int64
}

const simRunners = 4

// simTokens is how long the tokens are good that runners begin with: the last
// has none, the one before it an old one at times.
var simTokens = [simRunners]time.Duration{wire.MaxTokenLife, wire.MaxTokenLife, 400 * time.Hour, 0}

// simGrant is how long granted tokens are good: they are renewed, and expire.
const simGrant = 10 * time.Minute

func newGround(t *testing.T) *ground {
	t.Helper()
	g := &ground{image: map[string][]byte{}}
	var err error
	if g.dir, err = os.MkdirTemp("/dev/shm", "waypoint-sim-"); err != nil { // commits wait for no disk there
		g.dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(g.dir) })
	state := filepath.Join(g.dir, "ground")
	synctest.Test(t, func(t *testing.T) {
		s, err := New(t.Context(), Config{StateDir: state})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for i := range simRunners {
			_, key, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			var reply wire.TokenReply
			if life := simTokens[i]; life > 0 {
				if reply, err = s.runnerToken(t.Context(), simClient, wire.RunnerTokenRequest{
					ID: simRunnerID(i), ExpiresIn: wire.Duration(life),
				}); err != nil {
					t.Fatal(err)
				}
			}
			g.keys, g.tokens = append(g.keys, key), append(g.tokens, reply.Token)
		}
	})
	if err := copyState(state, func(name string, b []byte) error { g.image[name] = b; return nil }); err != nil {
		t.Fatal(err)
	}
	return g
}

// copyState hands over what a server that has died leaves to the next.
func copyState(dir string, put func(name string, b []byte) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "lock" || strings.HasSuffix(e.Name(), "-shm") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil {
			err = put(e.Name(), b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// world is all that is of one seed.
type world struct {
	g       *ground
	seed    uint64
	rng     *rand.Rand
	dir     string // of the server that lives, or is to live next
	lives   int
	runners []*simRunner
	wishes  []*wish
	tries   map[wire.JobRef]*simTry // by reference: every one that a runner was given
	names   map[string]string       // job id -> name
	ids     map[string]string       // name -> job id, once somebody was told
	seen    map[string]wire.Job     // by id: the record at the last look
	gone    map[string]wire.Job     // by id: those that have been removed, as they were last
	retries map[string]int          // id -> how many there are of it
	inputs  map[string]string       // name -> the digest of its input, of those that have one
	keep    time.Duration           // how long what has ended is kept, at least; zero: for ever
	kept    time.Duration           // and how long it was by the server before
	starts  map[string]int          // id -> the attempt that was started
	read    map[wire.JobRef]int64   // how far a follower has read
	orphans map[wire.JobRef]bool    // their runner has been forgotten
	spools  map[wire.JobRef]string  // under what their runner remembered what it was given then
	calm    bool                    // nothing goes wrong any more
	full    atomic.Bool             // there is no room
	history []string
	wrong   []string
	count   map[string]int
	life    *life
}

// run tells the history of a seed.
func (g *ground) run(t *testing.T, seed uint64) *world {
	w := &world{
		g: g, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)),
		tries: map[wire.JobRef]*simTry{}, names: map[string]string{}, ids: map[string]string{},
		seen: map[string]wire.Job{}, gone: map[string]wire.Job{}, retries: map[string]int{}, inputs: map[string]string{}, starts: map[string]int{}, read: map[wire.JobRef]int64{}, orphans: map[wire.JobRef]bool{}, spools: map[wire.JobRef]string{}, count: map[string]int{},
	}
	base := filepath.Join(g.dir, fmt.Sprint(g.worlds.Add(1)))
	defer os.RemoveAll(base)
	w.dir = filepath.Join(base, "0")
	if err := writeState(w.dir, g.image); err != nil {
		t.Fatal(err)
	}
	for i := range simRunners {
		w.runners = append(w.runners, newSimRunner(w, i))
	}
	lives := 1 + w.rng.IntN(3)
	for n := 0; n <= lives && len(w.wrong) == 0; n++ {
		w.lives++
		w.calm = n >= lives-1 // the last but one comes to its end, the last looks at what is left
		synctest.Test(t, func(*testing.T) { w.live(n == lives) })
	}
	return w
}

func writeState(dir string, image map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, b := range image {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// say adds a line to the history.
func (w *world) say(format string, args ...any) {
	at := time.Duration(0)
	if w.life != nil {
		at = time.Since(w.life.began)
	}
	w.history = append(w.history, fmt.Sprintf("%d %12s  ", w.lives, at)+fmt.Sprintf(format, args...))
}

// violate notes that the model does not hold.
func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.wrong = append(w.wrong, text)
	w.say("WRONG: %s", text)
}

// story is the end of the history.
func (w *world) story(lines int) string {
	return strings.Join(w.history[max(0, len(w.history)-lines):], "\n")
}

// chance is true once in n times, and never when it is calm.
func (w *world) chance(n int) bool { return !w.calm && w.rng.IntN(n) == 0 }

// life is one server from its start to its death, and a clock.
type life struct {
	w       *world
	s       *Server
	clock   *simClock
	began   time.Time
	ctx     context.Context
	stop    context.CancelFunc
	links   []*simLink // that the server has
	gone    []*simLink // that it has given up
	calls   []*simCall // that have not been answered
	commits atomic.Int64
	dieAt   int64       // with which moment that has commits; 0: with none
	moments int64       // of those so far; the committer's
	moment  time.Time   // the last of them; the committer's
	dying   atomic.Bool // it dies once this moment's commits are done
	dead    atomic.Bool // what it does now happens to nobody
	image   map[string][]byte
	looked  int64 // commits at the last look

	lookedAt time.Time            // what the clock said then, or when it was set last since; zero before the first, which finds what a life before has done
	filled   time.Time            // when there was no room last, as far as was looked
	overdue  map[string]time.Time // by job id: since when the clock says that it should not be queued any more
	unsure   map[string]stay      // by job id: since when it is assigned to whom works
}

// live is a life in its bubble of time.
func (w *world) live(last bool) {
	time.Sleep(time.Duration(w.rng.IntN(1000)) * time.Hour) // the clock was set
	l := &life{w: w, began: time.Now(), overdue: map[string]time.Time{}, unsure: map[string]stay{}}
	l.clock = &simClock{began: l.began}
	w.life = l
	w.full.Store(false)
	l.start()
	if l.s == nil {
		return
	}
	w.say("a server starts at %s", l.began.UTC().Format(time.DateTime))
	w.count["life"]++
	time.Sleep(time.Microsecond) // what is due at once is done
	l.look()
	l.rebegin()
	switch {
	case last:
		w.checkAll()
	case w.calm:
		l.heal()
	default:
		if w.rng.IntN(2) == 0 {
			l.dieAt = int64(1 + w.rng.IntN(120))
		}
		for steps := 60 + w.rng.IntN(200); steps > 0 && len(w.wrong) == 0 && !l.dead.Load(); steps-- {
			l.step()
		}
	}
	l.end(!last && !w.calm)
	w.life = nil
}

// start opens the state directory as a new process does.
func (l *life) start() {
	w := l.w
	l.ctx, l.stop = context.WithCancel(context.Background())
	grant, keep := simGrant, true
	if !w.calm && w.rng.IntN(3) == 0 {
		grant, keep = time.Minute, w.rng.IntN(2) == 0
	}
	w.kept, w.keep = w.keep, 0
	age := 200 * 365 * 24 * time.Hour
	if w.rng.IntN(3) == 0 { // longer than what is looked at at once, so what is removed was seen to end
		w.keep = []time.Duration{20 * time.Second, 2 * time.Minute, 10 * time.Minute}[w.rng.IntN(3)]
		age = w.keep
	}
	s, err := New(l.ctx, Config{
		StateDir: w.dir, Software: "waypoint simulation", GrantLife: grant, NoTokenRenew: !keep, RetainFor: age,
		now: l.clock.now, faults: &store.Faults{Gather: synctest.Wait, Begin: l.begin},
	})
	if err != nil {
		w.violate("the server does not start: %v", err)
		return
	}
	l.s = s
	for _, r := range w.runners { // until the first look, which finds what the life before did while it died
		r.heard = l.began.Add(-r.silent)
		r.entered.Store(nil)
		r.deciding, r.trusted = 0, false
		if !r.forgot.IsZero() {
			r.forgot = l.began.Add(-r.absent)
		}
	}
}

// rebegin gives every runner a whole lease from the server's start on.
func (l *life) rebegin() {
	for _, r := range l.w.runners {
		r.heard, r.quiet = l.began, l.began
		if !r.forgot.IsZero() {
			r.forgot = l.began
		}
	}
}

// begin comes before each commit. How many a moment has, and who shares them, may
// differ between two runs of a seed; that it has any does not. So the
// server dies before the first of a moment, or behind all and before their answers.
func (l *life) begin(callers int) error {
	l.commits.Add(1)
	if now := time.Now(); callers > 0 && !now.Equal(l.moment) {
		l.moment = now
		if l.moments++; l.moments == l.dieAt && !l.dead.Load() {
			if l.dieAt%2 == 0 {
				l.die()
			} else {
				l.dying.Store(true)
			}
		}
	}
	if l.w.full.Load() {
		return errNoSpace
	}
	return nil
}

// die keeps what is on the disk at this moment.
func (l *life) die() {
	l.image = map[string][]byte{}
	if err := copyState(l.w.dir, func(name string, b []byte) error { l.image[name] = b; return nil }); err != nil {
		panic(err)
	}
	l.dead.Store(true)
}

// end kills the server, unless it has died, or has it end in order.
func (l *life) end(crash bool) {
	w := l.w
	if crash && !l.dead.Load() && w.rng.IntN(3) > 0 {
		l.die()
	}
	w.full.Store(false)
	l.stop()
	if err := l.s.Close(); err != nil {
		w.violate("the server does not end: %v", err)
	}
	for _, r := range w.runners {
		r.cut("the server ends")
		r.silent, r.absent = time.Since(r.heard), time.Since(r.forgot)
	}
	if l.dead.Load() {
		w.say("the server has died")
		w.count["crash"]++
		w.dir += "x"
		if err := writeState(w.dir, l.image); err != nil {
			panic(err)
		}
	}
}
