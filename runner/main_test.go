package runner

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/runner/executor"
	"github.com/waypointd/waypoint/runner/supervisor"
)

func TestMain(m *testing.M) {
	if os.Args[0] == executor.ShimArg { // the supervisor runs this program again
		os.Exit(executor.ShimMain())
	}
	if len(os.Args) == 3 && os.Args[1] == "supervise" {
		if err := supervisor.Run(context.Background(), supervisor.ProcessConfig{Dir: os.Args[2]}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// newSupervisor is one in this process, for the length of the test.
func newSupervisor(t testing.TB, dir string) supervisor.Jobs {
	t.Helper()
	s, err := supervisor.New(supervisor.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// process is a supervisor in a process of its own, which can be killed.
type process struct {
	t   *testing.T
	dir string

	mu  sync.Mutex
	cmd *exec.Cmd // nil while it is dead; guarded by mu
}

// connect connects to it, and starts it where it is dead.
func (p *process) connect() (supervisor.Jobs, error) {
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := p.start(); err != nil {
			return nil, err
		}
		jobs, err := supervisor.Connect(p.t.Context(), filepath.Join(p.dir, supervisor.SocketFile))
		if err == nil || time.Now().After(limit) {
			return jobs, err
		}
	}
}

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		return nil
	}
	cmd := exec.Command("/proc/self/exe", "supervise", p.dir)
	cmd.Stderr = p.t.Output()
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd = cmd
	return nil
}

func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.cmd = nil
	}
}
