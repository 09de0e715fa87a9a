package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errShimDied is what a tree says whose shim has been killed.
var errShimDied = errors.New("the parent process of the job was killed")

// shimTree is a tree below a shim.
type shimTree struct {
	e       *Executor
	process *os.Process
	socket  *os.File
	run     <-chan shimReply // of the command that was started

	out struct {
		sync.Mutex
		*json.Encoder
	}
	mu      sync.Mutex
	next    int                    // ID of the next request
	pending map[int]chan shimReply // sent and closed by receive; nil when the shim is gone
	session int                    // of the last command: to find what a dead shim has left
}

func (e *Executor) newShimTree(o Options) (*shimTree, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket for job shim: %w", err)
	}
	syscall.SetNonblock(fds[0], true)
	ours, theirs := os.NewFile(uintptr(fds[0]), "shim"), os.NewFile(uintptr(fds[1]), "shim")
	defer theirs.Close()
	var p *os.Process
	e.start.run(func() {
		p, err = os.StartProcess(e.cfg.Shim, []string{ShimArg}, &os.ProcAttr{
			Dir:   "/",
			Env:   []string{"GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=16MiB"},
			Files: []*os.File{e.devnull, e.devnull, e.cfg.ShimLog, theirs, o.Stdout, o.Stderr},
			Sys:   &syscall.SysProcAttr{Setsid: true, Credential: e.cfg.User.credential()},
		})
	})
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("start job shim: %w", err)
	}
	t := &shimTree{e: e, process: p, socket: ours, pending: map[int]chan shimReply{}}
	t.out.Encoder = json.NewEncoder(ours)
	s, _ := readStat(p.Pid) // not waited for yet, so it is there
	if err := writeHandle(o.Handle, handle{Shim: p.Pid, Start: s.start}); err != nil {
		ours.Close() // which ends it
		p.Wait()
		return nil, err
	}
	go t.receive()
	return t, nil
}

// receive hands replies to whoever asked; it ends with the socket.
func (t *shimTree) receive() {
	for in := json.NewDecoder(t.socket); ; {
		var r shimReply
		err := in.Decode(&r)
		t.mu.Lock()
		if err != nil {
			for _, c := range t.pending {
				close(c)
			}
			t.pending = nil
			t.mu.Unlock()
			return
		}
		c := t.pending[r.ID]
		if r.Started != 0 {
			t.session = r.Started
		} else if c != nil {
			delete(t.pending, r.ID)
		}
		t.mu.Unlock()
		if c != nil {
			c <- r
			if r.Started == 0 {
				close(c)
			}
		}
	}
}

// ask sends a request; the channel is closed behind its last reply, or when
// the shim is gone.
func (t *shimTree) ask(r shimRequest) <-chan shimReply {
	c := make(chan shimReply, 2) // as many as one request can have
	t.mu.Lock()
	if t.pending == nil {
		t.mu.Unlock()
		close(c)
		return c
	}
	t.next++
	r.ID = t.next
	t.pending[r.ID] = c
	t.mu.Unlock()
	t.out.Lock()
	defer t.out.Unlock()
	if err := t.out.Encode(r); err != nil {
		// Partly written or not at all: of no use any more.
		t.socket.Close()
	}
	return c
}

func (t *shimTree) Isolation() string { return IsolationProcessGroup }

func (t *shimTree) Start(c Command) error {
	replies := t.ask(shimRequest{Run: &c})
	r, ok := t.await(replies, 0, nil) // its command may stop it before it has said that it has started
	switch {
	case !ok:
		return errShimDied
	case r.Failed != nil:
		return r.Failed
	}
	t.run = replies
	return nil
}

func (t *shimTree) Wait() Exit {
	r, ok := t.await(t.run, 0, nil)
	if !ok || r.Exited == nil {
		return Exit{Err: errShimDied}
	}
	return exitOf(syscall.WaitStatus(*r.Exited))
}

// Term does not insist for ever: a job that stops its shim again and again is to be killed.
func (t *shimTree) Term() { t.insist(shimRequest{Term: true}, 3, nil) }

func (t *shimTree) Kill() { t.insist(shimRequest{Kill: true}, 0, t.killBelow) }

// insistEvery is how long a shim has to do as it is asked before it is helped.
const insistEvery = time.Second

// insist is ask of a shim that its job may have stopped, as its user's own: it is
// continued, and where the job stops it again and again, help does what was asked. It
// is given up after so many times insistEvery; 0 is never.
func (t *shimTree) insist(r shimRequest, times int, help func()) (shimReply, bool) {
	t.process.Signal(unix.SIGCONT)
	return t.await(t.ask(r), times, help)
}

// await is insist of a request that was made.
func (t *shimTree) await(replies <-chan shimReply, times int, help func()) (shimReply, bool) {
	late := time.NewTicker(insistEvery)
	defer late.Stop()
	for n := 1; ; n++ {
		select {
		case reply, ok := <-replies:
			return reply, ok
		case <-late.C:
			if help != nil {
				help()
			}
			t.process.Signal(unix.SIGCONT)
			if n == times {
				return shimReply{}, false
			}
		}
	}
}

// killBelow is the shim's, done from outside: a shim that is stopped still is the
// parent of whatever its job has left.
func (t *shimTree) killBelow() { killBelow(t.process.Pid, time.Now().Add(endLimit)) }

func (t *shimTree) AwaitEmpty(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.ask(shimRequest{Await: true}):
		return true
	case <-timer.C:
		return false
	}
}

func (t *shimTree) Close() (Usage, error) {
	r, ok := t.insist(shimRequest{Close: true}, 0, t.killBelow)
	t.socket.Close()
	// It has nothing left to do, or is gone: no need to wait for its manners.
	t.process.Kill()
	st, err := t.process.Wait()
	if ok {
		if r.Left > 0 {
			return *r.Usage, fmt.Errorf("kill processes of the job: %d do not end", r.Left)
		}
		return *r.Usage, nil
	}
	var u Usage
	if err == nil {
		ru, _ := st.SysUsage().(*syscall.Rusage)
		u.add(ru) // what it has waited for is in there
	}
	t.killSession()
	return u, nil
}

// killSession kills what a shim that was killed itself has left, as far as it
// can be found: the command's session. Its command has got the signal that its
// parent died.
func (t *shimTree) killSession() {
	t.mu.Lock()
	session := t.session
	t.mu.Unlock()
	for deadline := time.Now().Add(endLimit); session > 1 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		left := 0
		for _, s := range processes() {
			if s.session == session && !s.dead {
				left++
				s.signal(unix.SIGKILL, s.alive)
			}
		}
		if left == 0 {
			return
		}
	}
}
