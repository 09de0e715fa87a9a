package daemon

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

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
		name := w.any()
		if held := w.held(); len(held) > 0 && w.rng.IntN(2) == 0 {
			name = held[w.rng.IntN(len(held))]
		}
		if name != "" {
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

// held are the names, in order, of those of them that runners have.
func (w *world) held() (names []string) {
	for name, id := range w.ids {
		if j := w.seen[id]; j.State == wire.Assigned || j.State == wire.Running {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
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
