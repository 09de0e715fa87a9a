package daemon_test

import (
	"context"
	"database/sql"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/daemon/daemontest"
	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestMain(m *testing.M) {
	code := m.Run()
	storetest.End()
	os.Exit(code)
}

// one is one of several servers over a database, with a way of its own to it.
type one struct {
	*daemontest.Server
	way *storetest.Relay
}

// servers are several over one database, which is returned as well.
func servers(t *testing.T, n int, cfg daemon.Config) ([]one, *sql.DB) {
	t.Helper()
	url := storetest.Database(t)
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	list := make([]one, n)
	for i := range list {
		list[i].way = storetest.NewRelay(t, url)
		cfg.StoreDSN = list[i].way.URL()
		list[i].Server = daemontest.Start(t, cfg)
	}
	return list, db
}

// keeper is who keeps a job.
func keeper(t *testing.T, db *sql.DB, job string) (id string) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), "SELECT keeper FROM jobs WHERE id = $1", job).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

func awaitKeeper(t *testing.T, db *sql.DB, job string, want func(string) bool) {
	t.Helper()
	deadline := time.Now().Add(daemontest.Patience)
	for !want(keeper(t, db, job)) {
		if time.Now().After(deadline) {
			t.Fatalf("the keeper of the job is %q", keeper(t, db, job))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitView waits until a server says of a runner what is wanted.
func awaitView(t *testing.T, c *client.Client, id string, want func(wire.Runner) bool) wire.Runner {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), daemontest.Patience)
	defer cancel()
	for {
		r, err := c.Runner(ctx, id)
		if err == nil && want(r) {
			return r
		}
		select {
		case <-ctx.Done():
			t.Fatalf("runner is %+v, %v", r, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func told(t *testing.T, c *client.Client, id string) string {
	t.Helper()
	var b strings.Builder
	for item, err := range c.Stream(t.Context(), wire.StreamRequest{ID: id}) {
		if err != nil {
			t.Fatal(err)
		}
		b.Write(item.Data.Bytes)
	}
	return b.String()
}

// beats has a runner say what it holds, as an agent does, until it is ended.
func beats(t *testing.T, r *daemontest.Runner, held ...wire.JobRef) (end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			r.TrySay(wire.WorkEvent{Holds: &wire.WorkHolds{Jobs: held}})
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// What is queued at one server goes at once to a runner of another one; its
// output and its end reach who follows and waits anywhere, and so does a cancel
// the runner.
func TestServersShareTheQueue(t *testing.T) {
	s, _ := servers(t, 2, slowly)
	a, b := s[0], s[1]
	r := a.Adopted(t, "r1", map[string]string{"zone": "x"})
	c := b.Client(t)
	awaitView(t, c, "r1", func(r wire.Runner) bool { return r.Online && r.Admitted && r.Concurrency == 1 })
	if ok, err := c.Match(t.Context(), wire.Target{Labels: map[string]string{"zone": "x"}}); err != nil || !ok {
		t.Errorf("the other server's runner does not match: %v, %v", ok, err)
	}
	if st, err := c.ServerStatus(t.Context()); err != nil || st.RunnersOnline != 1 {
		t.Errorf("status %+v, %v", st, err)
	}

	job := submit(t, c, run())[0]
	given := r.MustStart()
	if given.Job != job.ID {
		t.Fatalf("started %+v", given)
	}
	b.AwaitJob(t, job.ID, running)
	awaitView(t, c, "r1", func(r wire.Runner) bool { return r.RunningJobs == 1 })
	if why, err := c.Why(t.Context(), job.ID); err != nil || strings.Contains(why.Sentence, "out of contact") {
		t.Errorf("why: %+v, %v", why, err)
	}
	next := submit(t, c, run())[0]
	if why, err := c.Why(t.Context(), next.ID); err != nil || why.Code != "runners_busy" {
		t.Errorf("why: %+v, %v", why, err)
	}
	waited := make(chan wire.Job, 1)
	go func() {
		j, _ := c.Wait(t.Context(), job.ID)
		waited <- j
	}()
	if _, err := c.Cancel(t.Context(), job.ID, false); err != nil {
		t.Fatal(err)
	}
	r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Cancel != nil && o.Cancel.JobRef == given.JobRef })
	r.MustFinish(given.JobRef, "as far as it came\n", wire.Result{State: wire.Canceled, Reason: wire.ReasonCanceled})
	if j := <-waited; j.State != wire.Canceled {
		t.Errorf("waited for %+v", j)
	}
	if got := told(t, c, job.ID); got != "as far as it came\n" {
		t.Errorf("output %q", got)
	}

	// By force, of a job that another server's runner runs.
	given = r.MustStart()
	if given.Job != next.ID {
		t.Fatalf("started %+v", given)
	}
	if j, err := c.Cancel(t.Context(), next.ID, true); err != nil || j.State != wire.Canceled {
		t.Fatalf("%+v, %v", j, err)
	}
	r.AwaitOrder(func(o wire.WorkOrder) bool { return o.Drop != nil && *o.Drop == given.JobRef })
	last := submit(t, c, run())[0]
	given = r.MustStart()
	r.MustFinish(given.JobRef, "", daemontest.Succeeded())
	if j := b.AwaitJob(t, last.ID, ended); j.State != wire.Success {
		t.Errorf("ended as %+v", j)
	}
}

// A runner goes to another server in the middle of a job, and back.
func TestRunnerMovesBetweenServers(t *testing.T) {
	s, _ := servers(t, 3, slowly)
	r := s[0].Adopted(t, "r1", nil)
	c := s[2].Client(t)
	job := submit(t, c, run())[0]
	a := r.MustStart()
	s[2].AwaitJob(t, job.ID, running)
	for _, to := range []int{1, 2, 0, 1} {
		r.Disconnect()
		r.Move(s[to].Server)
		r.MustConnect()
		b := r.MustBegin(wire.Held{JobRef: a.JobRef, Started: true})
		if len(b.Keep) != 1 || len(b.Drop) != 0 {
			t.Fatalf("on server %d: %+v", to, b)
		}
	}
	r.MustFinish(a.JobRef, "one\ntwo\n", daemontest.Succeeded())
	if j := s[0].AwaitJob(t, job.ID, ended); j.State != wire.Success || j.Attempt != 1 {
		t.Fatalf("job ended as %+v", j)
	}
	for _, each := range s {
		if got := told(t, each.Client(t), job.ID); got != "one\ntwo\n" {
			t.Errorf("output %q", got)
		}
	}
}

// A copy of a runner that is alive at one server is refused by the others, and
// takes nothing from it.
func TestCopyAtAnotherServer(t *testing.T) {
	cfg := slowly
	cfg.Heartbeat = 500 * time.Millisecond
	s, _ := servers(t, 2, cfg)
	r := s[0].Adopted(t, "r1", nil)
	job := submit(t, s[1].Client(t), run())[0]
	ref := r.MustStart().JobRef
	defer beats(t, r, ref)()
	double := s[1].Runner(t, "r1", nil)
	double.Key, double.Offers = r.Key, r.Offers
	double.MustConnect()
	_, err := double.Begin()
	wantKind(t, err, wire.Conflict)
	r.MustFinish(ref, "x", daemontest.Succeeded())
	if j := s[1].AwaitJob(t, job.ID, ended); j.State != wire.Success {
		t.Errorf("ended as %+v", j)
	}
}

// A server is killed; of its runners one comes to the other server, one does not.
func TestServerIsMissed(t *testing.T) {
	t.Parallel()
	cfg := daemon.Config{Heartbeat: time.Second, Lease: 8 * time.Second}
	s, _ := servers(t, 2, cfg)
	a, b := s[0], s[1]
	comes, stays := a.Adopted(t, "comes", nil), a.Adopted(t, "stays", nil)
	c := b.Client(t)
	target := func(id string) wire.JobSpec {
		return run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: id} })
	}
	kept, lost := submit(t, c, target("comes"))[0], submit(t, c, target("stays"))[0]
	ref := comes.MustStart().JobRef
	stays.MustStart()
	b.AwaitJob(t, kept.ID, running)
	b.AwaitJob(t, lost.ID, running)
	a.way.Cut(true) // it ends without a word to the others
	comes.Disconnect()
	stays.Disconnect()
	comes.Move(b.Server)
	comes.MustConnect()
	if begun := comes.MustBegin(wire.Held{JobRef: ref, Started: true}); len(begun.Keep) != 1 {
		t.Fatalf("%+v", begun)
	}
	defer beats(t, comes, ref)()
	if j := b.AwaitJob(t, lost.ID, ended); j.Reason != wire.ReasonRunnerLost {
		t.Errorf("the job of the one that stays away: %+v", j)
	}
	comes.MustFinish(ref, "x", daemontest.Succeeded())
	if j := b.AwaitJob(t, kept.ID, ended); j.State != wire.Success {
		t.Errorf("the job of the one that comes: %+v", j)
	}
}

// A server that is cut off for a while finds that it was missed, and takes back
// what its runners hold.
func TestServerComesBack(t *testing.T) {
	cfg := daemon.Config{Heartbeat: 500 * time.Millisecond, Lease: time.Hour}
	s, db := servers(t, 2, cfg)
	a, b := s[0], s[1]
	r := a.Adopted(t, "r1", nil)
	c := b.Client(t)
	job := submit(t, c, run())[0]
	ref := r.MustStart().JobRef
	defer beats(t, r, ref)()
	b.AwaitJob(t, job.ID, running)
	kept := keeper(t, db, job.ID)
	a.way.Hold(true) // its sessions go on
	awaitKeeper(t, db, job.ID, func(k string) bool { return k != kept })
	a.way.Hold(false)
	awaitKeeper(t, db, job.ID, func(k string) bool { return k == kept })
	awaitView(t, c, "r1", func(r wire.Runner) bool { return r.Online })
	r.MustFinish(ref, "x", daemontest.Succeeded())
	if j := b.AwaitJob(t, job.ID, ended); j.State != wire.Success || j.Attempt != 1 {
		t.Errorf("ended as %+v", j)
	}
}

// What a runner has given back at a server that hangs is not that server's to give
// to others any more once the runner is at another one, and holds it there.
func TestGivenBackAtAServerThatHangs(t *testing.T) {
	s, db := servers(t, 2, daemon.Config{Heartbeat: 500 * time.Millisecond, Lease: time.Hour})
	a, b := s[0], s[1]
	r := a.Adopted(t, "r1", nil)
	c := b.Client(t)
	job := submit(t, c, run())[0]
	ref := r.MustAssign().JobRef
	kept := keeper(t, db, job.ID)
	a.way.Hold(true)
	r.Say(wire.WorkEvent{Nack: &wire.Nack{JobRef: ref, Error: "it is about to end"}})
	again := b.Runner(t, "r1", nil)
	again.Key, again.Offers = r.Key, r.Offers
	again.MustConnect()
	if begun := again.MustBegin(wire.Held{JobRef: ref}); len(begun.Keep) != 1 { // A does not answer
		t.Fatalf("%+v", begun)
	}
	awaitKeeper(t, db, job.ID, func(k string) bool { return k != kept })
	a.way.Hold(false)
	// It goes on; or it ends, where the database has been out of its reach for too long.
	if _, err := a.Client(t).Submit(t.Context(), run(func(j *wire.JobSpec) { j.Target = wire.Target{ID: "nobody"} })); err != nil {
		wantKind(t, err, wire.Unavailable)
	}
	again.Say(wire.WorkEvent{Ack: &ref})
	again.AwaitOrder(func(o wire.WorkOrder) bool { return o.Start != nil && *o.Start == ref })
	again.MustFinish(ref, "x", daemontest.Succeeded())
	if j := b.AwaitJob(t, job.ID, ended); j.State != wire.Success || j.Attempt != 1 {
		t.Errorf("ended as %+v", j)
	}
}
