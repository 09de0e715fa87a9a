package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

var errNoSpace = errors.New("simulated: no space left on device")

// simClient is who all clients are.
var simClient = &mux.Peer{Network: "memory", Hello: wire.Hello{Role: wire.RoleClient}, Data: &login{}}

// simCall is a request that the server has. Its answer is what is to be done
// with it, once all is quiet.
type simCall struct{ answer chan func() }

// call has the server do something; what it returns is done by the simulation.
func (l *life) call(f func() (then func())) *simCall {
	c := &simCall{answer: make(chan func(), 1)}
	l.calls = append(l.calls, c)
	go func() { c.answer <- f() }()
	return c
}

// settle lets time pass until nobody has anything to do, and takes the answers.
func (l *life) settle(d time.Duration) {
	time.Sleep(d)
	if l.dead.Load() || l.dying.Load() || l.w.chance(1500) {
		if !l.dead.Load() {
			l.die()
		}
		return
	}
	for _, r := range l.w.runners {
		if _, ok := l.s.fleet.get(r.id); ok {
			r.heard = time.Now()
		}
	}
	was := maps.Clone(l.w.seen)
	l.look()
	for {
		again := false
		for _, c := range slices.Clone(l.calls) {
			select {
			case then := <-c.answer:
				l.calls = slices.DeleteFunc(l.calls, func(o *simCall) bool { return o == c })
				if then != nil {
					then()
				}
				again = true
			default:
			}
		}
		if !again {
			break
		}
	}
	for _, k := range slices.Clone(l.links) {
		k.listen(was)
	}
	l.checkTime()
}

// pass lets time pass with the heartbeats of the sessions that live at both ends.
func (l *life) pass(d time.Duration) {
	beat := l.s.cfg().Heartbeat
	for d > 0 && !l.dead.Load() && len(l.w.wrong) == 0 {
		slice := min(d, beat)
		d -= slice
		for _, k := range slices.Clone(l.links) {
			switch {
			case k.m == nil:
			case k.r.link == k:
				k.m.heard.Store(l.s.uptime())
			case time.Duration(l.s.uptime()-k.m.heard.Load()) > missedHeartbeats*beat:
				k.give("nothing is heard")
			}
		}
		l.settle(slice)
	}
}

// simLink is a session of a runner, as the server has it.
type simLink struct {
	l      *life
	r      *simRunner
	spool  string
	drain  bool // what the server has heard of the host's drain
	ctx    context.Context
	cancel context.CancelCauseFunc
	v      *visitor
	m      *member          // nil until it works
	up     []wire.WorkEvent // said by the runner
	down   []wire.WorkOrder // said by the server
	hears  bool             // an event is being dealt with
	asks   bool             // it shows its tokens
	over   bool             // the server has given it up
	begun  time.Time        // when the runner was told what to go on with
	given  []wire.JobRef    // assigned on it
}

// serve is what the server does for a session and its work stream. See
// serveConn and runnerWork.
func (k *simLink) serve(begin wire.WorkBegin) (then func()) {
	s, refused := k.l.s, func(err error) func() {
		return func() {
			k.l.w.say("%s: refused: %v", k.r.id, wire.KindOf(err))
			k.end()
		}
	}
	v, err := s.admitRunner(k.ctx, k.r.peer(), door{})
	if err != nil {
		return refused(err)
	}
	parted := func() { s.fleet.parted(v) }
	m := &member{visitor: v, orders: newOrders(), replaced: k.cancel, heartbeat: s.cfg().Heartbeat}
	m.heard.Store(s.uptime())
	if err := s.enter(k.ctx, m); err != nil {
		parted()
		return refused(err)
	}
	if err := s.begin(k.ctx, m, begin); err != nil {
		s.exit(m)
		parted()
		return refused(err)
	}
	go func() {
		select {
		case <-k.ctx.Done():
		case <-v.ended: // see attend
			k.cancel(v.why)
		}
		s.exit(m)
		parted()
	}()
	return func() { k.v, k.m = v, m }
}

// give has the server give the session up.
func (k *simLink) give(why string) {
	if !k.over {
		k.l.w.say("%s: the server gives its session up: %s", k.r.id, why)
		k.cancel(errors.New(why))
		k.end()
	}
}

func (k *simLink) end() {
	k.over = true
	k.l.links = slices.DeleteFunc(k.l.links, func(o *simLink) bool { return o == k })
	if k.m != nil {
		k.l.gone = append(k.l.gone, k)
	}
	if k.r.link == k && k.m == nil {
		k.r.cut("refused")
	}
}

// listen takes what the server has said.
func (k *simLink) listen(was map[string]wire.Job) {
	if k.m == nil {
		return
	}
	said, over := k.m.orders.take()
	for _, o := range said {
		if o.Start != nil {
			if j := was[o.Start.Job]; j.State.Ended() || j.Attempt != o.Start.Attempt || j.RunnerID != k.r.id {
				k.l.w.violate("the start of %s is confirmed to %s, and the record says %s %s of attempt %d",
					k.l.w.ref(*o.Start), k.r.id, j.State, j.Reason, j.Attempt)
			}
		}
	}
	k.down = append(k.down, said...)
	if over != nil || k.ctx.Err() != nil {
		k.give(fmt.Sprintf("its work stream ends: %v", context.Cause(k.ctx)))
	}
}

// hear has the server deal with the next event. See Server.hear.
func (k *simLink) hear() {
	if k.hears || k.m == nil || len(k.up) == 0 {
		return
	}
	e := k.up[0]
	k.up, k.hears = k.up[1:], true
	s, m := k.l.s, k.m
	m.heard.Store(s.uptime())
	k.l.call(func() func() {
		switch {
		case e.Ack != nil:
			s.acknowledged(m, *e.Ack)
		case e.Nack != nil:
			s.refused(m, *e.Nack)
		case e.Drain != nil:
			s.fleet.drain(m, *e.Drain)
			s.store.Kick()
			return func() { k.hears, k.drain = false, *e.Drain }
		case e.Holds != nil:
			if err := s.lose(s.fleet.missing(m, e.Holds.Jobs), "its runner does not have it any more"); wire.KindOf(err) != "" && wire.KindOf(err) != wire.Unavailable {
				return func() { k.l.w.violate("lost jobs: %v", err) }
			}
		}
		return func() { k.hears = false }
	})
	if e.Drain != nil && !*e.Drain {
		k.drain = false // from now on it may have been heard
	}
}

// late has a session that the server has given up deliver something.
func (k *simLink) late() {
	w, s := k.l.w, k.l.s
	if n := k.r.link; n != nil && n != k && w.rng.IntN(3) == 0 { // from before it was given anything
		k.up = append(k.up, wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: []wire.JobRef{}}})
	}
	if len(k.up) > 0 && w.rng.IntN(2) == 0 {
		w.say("%s: something comes of a session that is gone", k.r.id)
		w.count["late frame"]++
		k.hear()
		return
	}
	for _, a := range k.r.tries {
		if !a.started || len(a.out) == 0 || w.rng.IntN(2) == 0 {
			continue
		}
		w.say("%s: output of %s comes on a session that is gone", k.r.id, w.ref(a.JobRef))
		w.count["late frame"]++
		chunks := []wire.Data{{Time: time.Now(), Stream: wire.Stdout, Bytes: slices.Clone(a.out)}}
		k.l.call(func() func() {
			_, err := s.record(k.ctx, a.JobRef, k.v, 0, chunks, a.result)
			return func() {
				if err == nil {
					w.violate("%s: %s is recorded from a session that is gone", k.r.id, w.ref(a.JobRef))
				}
			}
		})
		return
	}
}

// wish is what a client wants, until it is told that it has it.
type wish struct {
	what  string // submit, cancel, kill, retry; adopt, reject, forget, drain, resume
	names []string
	specs []wire.JobSpec
	name  string
	done  bool
	sent  int
}

const simJobs = 14

// client has clients do something.
func (l *life) client() {
	w := l.w
	if len(w.wishes) > 0 && w.rng.IntN(3) == 0 { // once more, perhaps beside the first time
		if k := w.wishes[w.rng.IntN(len(w.wishes))]; !k.done {
			l.send(k)
			return
		}
	}
	switch n := w.rng.IntN(10); {
	case n < 6:
		if len(w.seen) < simJobs && len(w.names) < 3*simJobs {
			l.send(w.wishJobs())
		}
	case n < 9:
		if name := w.any(); name != "" {
			k := &wish{what: []string{"cancel", "kill", "retry"}[w.rng.IntN(3)], name: name}
			w.wishes = append(w.wishes, k)
			l.send(k)
		}
	}
	l.follow(w.any())
}

// operator has an operator decide about a runner.
func (l *life) operator(what string, r *simRunner) {
	k := &wish{what: what, name: r.id}
	l.w.wishes = append(l.w.wishes, k)
	l.send(k)
}

// decide sends what an operator wants of a runner.
func (l *life) decide(k *wish, done func(err error)) {
	s, ctx := l.s, l.ctx
	r := l.w.runners[slices.IndexFunc(l.w.runners, func(r *simRunner) bool { return r.id == k.name })]
	lifts := k.what != "reject" && k.what != "drain"
	switch k.what { // from now on it may have happened
	case "adopt":
		r.rejected = false
	case "resume":
		r.drained = false
	case "forget":
		r.rejected, r.drained = false, false
		r.orphaned()
	}
	if lifts {
		r.deciding++
	}
	l.call(func() func() {
		var err error
		switch k.what {
		case "adopt":
			_, err = s.runnerAdopt(ctx, simClient, wire.AdoptRequest{ID: k.name})
		case "reject":
			_, err = s.runnerReject(ctx, simClient, wire.RunnerRequest{ID: k.name})
		case "forget":
			_, err = s.runnerForget(ctx, simClient, wire.RunnerRequest{ID: k.name})
		default:
			_, err = s.runnerDrain(ctx, simClient, wire.DrainRequest{ID: k.name, Drain: k.what == "drain"})
		}
		return func() {
			if lifts {
				r.deciding--
			}
			if k.what == "forget" {
				r.orphaned()
			}
			if k.what == "forget" && err == nil && r.forgot.IsZero() {
				r.forgot = time.Now()
			}
			if k.what == "reject" {
				r.unstored = ""
			}
			if err == nil {
				l.w.count[k.what]++
			}
			if err == nil && r.deciding == 0 {
				r.rejected = r.rejected || k.what == "reject"
				r.drained = r.drained || k.what == "drain"
			}
			if wire.KindOf(err) == wire.NotFound {
				err = nil // there is no such runner, as may be
			}
			if k.what == "resume" && wire.KindOf(err) == wire.Conflict {
				err = nil // its host's people have to
			}
			done(err)
		}
	})
}

// any is the name of a job that somebody was told of.
func (w *world) any() string {
	if len(w.ids) == 0 {
		return ""
	}
	all := make([]string, 0, len(w.ids))
	for name := range w.ids {
		all = append(all, name)
	}
	slices.Sort(all)
	return all[w.rng.IntN(len(all))]
}

// wishJobs draws one or a few jobs to be submitted.
func (w *world) wishJobs() *wish {
	k := &wish{what: "submit"}
	for i := range 1 + w.rng.IntN(3) {
		name := fmt.Sprintf("j%d.%d", len(w.wishes), i)
		spec := wire.JobSpec{
			Operation: wire.OpRun, Command: []string{name}, IdempotencyKey: name,
			Target: wire.Target{Any: true}, Priority: w.rng.IntN(3),
		}
		switch w.rng.IntN(5) {
		case 0:
			spec.Target = wire.Target{ID: simRunnerID(w.rng.IntN(simRunners))}
		case 1:
			spec.Target = wire.Target{Labels: map[string]string{"parity": fmt.Sprint(w.rng.IntN(2))}}
		}
		switch w.rng.IntN(6) {
		case 0:
			spec.Operation, spec.Project, spec.App = wire.OpDestroy, "shop", "web"
		case 1:
			spec.Singleton = fmt.Sprint("s", w.rng.IntN(2))
		}
		if w.rng.IntN(4) == 0 {
			spec.ExpiresIn = wire.Duration(time.Duration(1+w.rng.IntN(100)) * time.Second)
		}
		if w.rng.IntN(4) == 0 {
			spec.Stdin = fmt.Sprint("sha256:", w.rng.IntN(3))
			w.inputs[name] = spec.Stdin
		}
		if dep := w.any(); dep != "" && w.rng.IntN(4) == 0 {
			spec.DependsOn = append(spec.DependsOn, w.ids[dep])
		}
		if i > 0 && w.rng.IntN(2) == 0 {
			spec.DependsOn = append(spec.DependsOn, fmt.Sprintf("#%d", w.rng.IntN(i)))
		}
		spec.AllowDependencyFailure = len(spec.DependsOn) > 0 && w.rng.IntN(3) == 0
		k.names, k.specs = append(k.names, name), append(k.specs, spec)
	}
	w.wishes = append(w.wishes, k)
	return k
}

// send has a client say what it wants; the answer may be lost on its way.
func (l *life) send(k *wish) {
	w, s := l.w, l.s
	k.sent++
	lost := w.chance(8)
	w.say("client: %s %v%s", k.what, k.names, k.name)
	ctx := l.ctx
	id := w.ids[k.name]
	switch k.what {
	case "adopt", "reject", "forget", "drain", "resume":
		l.decide(k, func(err error) {
			switch {
			case lost:
				w.count["lost answer"]++
			case err == nil:
				k.done = true
				w.say("operator: has %s %s", k.what, k.name)
			case wire.KindOf(err) != wire.Unavailable:
				w.violate("%s %s: %v", k.what, k.name, err)
			}
		})
		return
	}
	l.call(func() func() {
		var jobs []wire.Job
		var err error
		switch k.what {
		case "submit":
			var reply wire.SubmitReply
			if err = l.sendInputs(k.specs); err != nil {
				break
			}
			reply, err = s.jobSubmit(ctx, simClient, wire.SubmitRequest{Jobs: slices.Clone(k.specs)})
			jobs = reply.Jobs
		case "retry":
			jobs = make([]wire.Job, 1)
			jobs[0], err = s.jobRetry(ctx, simClient, wire.JobRequest{ID: id})
		default:
			jobs = make([]wire.Job, 1)
			jobs[0], err = s.jobCancel(ctx, simClient, wire.CancelRequest{ID: id, Force: k.what == "kill"})
		}
		return func() {
			switch {
			case lost:
				w.say("client: no answer to %s %v%s", k.what, k.names, k.name)
				w.count["lost answer"]++
			case err == nil:
				k.done = true
				l.answered(k, jobs)
			case wire.KindOf(err) == wire.Unavailable:
				w.count["refused for room"]++
			case k.what == "retry" && wire.KindOf(err) == wire.Conflict:
				k.done = true
			case wire.KindOf(err) == wire.NotFound && w.asksForGone(k, id):
				w.count["asked for what is removed"]++
				k.done = true
			default:
				w.violate("%s %v%s: %v", k.what, k.names, k.name, err)
			}
		}
	})
}

// sendInputs has a client send what its jobs read, as far as that is missing.
func (l *life) sendInputs(specs []wire.JobSpec) error {
	for _, spec := range specs {
		if spec.Stdin == "" {
			continue
		}
		missing, err := l.s.store.MissingBlobs(l.ctx, []string{spec.Stdin})
		if err != nil {
			return err
		}
		if len(missing) == 0 {
			continue
		}
		if err := l.s.store.Update(l.ctx, func(tx *store.Tx) error {
			upload := rand.Text()
			if err := tx.PutBlobChunk(upload, 0, []byte(spec.Stdin)); err != nil {
				return err
			}
			return tx.SealBlob(upload, spec.Stdin, int64(len(spec.Stdin)), l.s.now())
		}); err != nil {
			return err
		}
	}
	return nil
}

// asksForGone reports whether a wish is about a job that has been removed.
func (w *world) asksForGone(k *wish, id string) bool {
	if k.what != "submit" {
		return w.gone[id].ID != ""
	}
	for _, spec := range k.specs {
		if slices.ContainsFunc(spec.DependsOn, func(id string) bool { return w.gone[id].ID != "" }) {
			return true
		}
	}
	return false
}

// checkInput holds that what a job reads is there when it is started.
func (w *world) checkInput(a *simTry) {
	name, _, _ := strings.Cut(a.name, "r") // those of a retry are the job's
	want := w.inputs[name]
	if want == "" {
		return
	}
	w.count["input"]++
	if got, err := w.life.s.store.BlobChunk(w.life.ctx, want, 0); err != nil || string(got) != want {
		w.violate("%s is started, and what it reads is %q, %v", w.ref(a.JobRef), got, err)
	}
}

// answered holds what a client was told.
func (l *life) answered(k *wish, jobs []wire.Job) {
	w := l.w
	for i, j := range jobs {
		switch k.what {
		case "submit":
			if id := w.ids[k.names[i]]; id != "" && id != j.ID && w.gone[id].ID == "" {
				w.violate("job %s is two", k.names[i])
			}
			w.ids[k.names[i]] = j.ID
		case "retry":
			w.ids[w.nameOf(j)] = j.ID
		case "kill":
			if !j.State.Ended() {
				w.violate("job %s was canceled by force and is %s", k.name, j.State)
			}
		case "cancel":
			if now := w.job(j.ID); !now.State.Ended() && now.CancelRequested.IsZero() {
				w.violate("the end of job %s was asked for, and it is not on record", k.name)
			}
		}
		if w.job(j.ID).ID == "" {
			w.violate("a client was told of job %s, which is not on record", w.nameOf(j))
		}
	}
	w.say("client: has %s %v%s", k.what, k.names, k.name)
}

// follow reads some output from where its reader has got to.
func (l *life) follow(name string) {
	w := l.w
	j := w.job(w.ids[name])
	if name == "" || j.Attempt == 0 {
		return
	}
	_, gone := w.gone[j.ID]
	ref := wire.JobRef{Job: j.ID, Attempt: j.Attempt}
	chunks, length, err := l.s.store.Log(l.ctx, j.ID, j.Attempt, w.read[ref], 100+w.rng.IntN(1000))
	if err != nil || gone {
		if !gone || wire.KindOf(err) != wire.NotFound {
			w.violate("read output of %s, removed %v: %v", w.ref(ref), gone, err)
		}
		return
	}
	w.checkRead(ref, chunks, length)
}

// look compares what is on record with the last time.
func (l *life) look() {
	defer func() { l.lookedAt = l.clock.now() }()
	if l.w.full.Load() {
		l.filled = time.Now()
	}
	n := l.commits.Load()
	if n == l.looked && l.looked > 0 {
		return
	}
	l.looked = n
	jobs, err := l.s.store.Jobs(context.Background(), wire.JobFilter{Limit: 500})
	if err != nil {
		l.w.violate("read jobs: %v", err)
		return
	}
	for _, r := range l.w.runners {
		r.lookUp()
	}
	slices.Reverse(jobs)
	l.w.observe(jobs, time.Now())
}

// lookUp reads the runner's record. One that waits for adoption, and does not come,
// is forgotten by the server itself, and what was decided of it with it.
func (r *simRunner) lookUp() {
	rec, err := r.w.life.s.store.Runner(context.Background(), r.id)
	if err != nil && wire.KindOf(err) != wire.NotFound {
		r.w.violate("read runner: %v", err)
	}
	same := rec.ID != "" && rec.FirstSeen.Equal(r.record.FirstSeen)
	if r.record.State == wire.Pending && (rec.ID == "" || !rec.FirstSeen.Equal(r.record.FirstSeen)) {
		r.drained = false
	}
	if !same || rec.State != wire.Adopted || rec.Fingerprint != r.fingerprint() {
		r.unstored = ""
	} else if r.unstored != "" && rec.Grant == "" {
		r.w.violate("%s has not stored what it was granted, and it is not on record any more", r.id)
	}
	r.before, r.record = r.record, rec
	if !r.nobody(true) && r.record.Fingerprint == r.fingerprint() && r.before.Fingerprint == r.fingerprint() && r.deciding == 0 {
		r.forgot = time.Time{}
		for ref := range r.w.orphans {
			if r.w.seen[ref.Job].RunnerID == r.id {
				delete(r.w.orphans, ref)
			}
		}
	}
}

// nobody reports whether there was nobody under the runner's id at the last two looks, or
// somebody who has not been admitted; with either, at one of them.
func (r *simRunner) nobody(either bool) bool {
	is, was := r.record.TokenExpiry.IsZero(), r.before.TokenExpiry.IsZero()
	return is && was || either && (is || was)
}

// record is what the server does for a report: see runnerReport.
func (l *life) record(k *simLink, ref wire.JobRef, late bool, length int64, chunks []wire.Data, result *wire.Result) (int64, error) {
	if late {
		return l.s.recordLate(k.ctx, ref, k.v, chunks, result)
	}
	length, err := l.s.record(k.ctx, ref, k.v, length, chunks, result)
	if err == nil && result != nil {
		l.s.fleet.end(ref, false)
		l.s.fleet.settleRejected(k.v.id)
	}
	return length, err
}
