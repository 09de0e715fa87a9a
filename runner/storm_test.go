package runner

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Whenever the agent is killed and whenever its session breaks, each job runs
// once and its output arrives whole.
func TestStorm(t *testing.T) {
	const jobs, count = 60, 40
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ran := filepath.Join(t.TempDir(), "ran")
	b := newBench(t, nil)
	var refs []wire.JobRef
	for i := range jobs {
		a := script("echo $WAYPOINT_JOB_ID >>" + ran + "; " + lines(count))
		if i%3 == 0 { // some have something to prepare, and to finish
			a.Spec.Stdin = b.s.put([]byte(a.Job))
			a.Spec.Operation, a.Spec.Output = wire.OpBuild, []string{"made"}
			a.Spec.Script += "; cat >made"
		}
		b.s.queue = append(b.s.queue, a)
		refs = append(refs, a.JobRef)
	}
	b.s.slots = 4
	// done finds the attempt of a job that has ended, if one has.
	done := func(job string) *testJob {
		for attempt := 1; ; attempt++ {
			j := b.s.jobs[wire.JobRef{Job: job, Attempt: attempt}]
			if j == nil || j.result != nil {
				return j
			}
		}
	}
	b.start()
	for left := jobs; left > 0; {
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		if rng.IntN(3) == 0 {
			b.restart()
		} else {
			b.s.cut()
		}
		left = 0
		b.s.mu.Lock()
		for _, ref := range refs {
			if done(ref.Job) == nil {
				left++
			}
		}
		b.s.mu.Unlock()
	}
	body, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	for _, ref := range refs {
		if n := strings.Count(string(body), ref.Job+"\n"); n != 1 {
			t.Errorf("job %s ran %d times", ref.Job, n)
		}
		j := done(ref.Job)
		if j.result.State != wire.Success {
			t.Errorf("job %s: %+v", ref.Job, j.result)
		}
		if string(j.log) != lineText(count) {
			t.Errorf("job %s: output %q", ref.Job, j.log)
		}
	}
	t.Log(fmt.Sprint(len(b.s.begins), " sessions"))
}
