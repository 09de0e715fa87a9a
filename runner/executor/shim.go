package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ShimArg is argument 0 of this program where it is to be a shim. The main
// functions of all programs that use this package begin with
//
//	if os.Args[0] == executor.ShimArg {
//		os.Exit(executor.ShimMain())
//	}
const ShimArg = "waypoint-job-shim"

// shimProbe is the argument of a shim that only shows that it can start.
const shimProbe = "probe"

// The shim's files.
const (
	shimSocket = 3 // JSON: shimRequest against shimReply
	shimStdout = 4 // of the commands
	shimStderr = 5
)

// shimRequest asks a shim for one thing: exactly one field besides ID is set.
type shimRequest struct {
	ID    int      `json:"id"`
	Run   *Command `json:"run,omitempty"`   // answered by Started or Failed, later by Exited
	Term  bool     `json:"term,omitempty"`  // answered when done
	Kill  bool     `json:"kill,omitempty"`  // answered when nothing is left
	Await bool     `json:"await,omitempty"` // answered when nothing is left, whoever ended it
	Close bool     `json:"close,omitempty"` // kill, answer with Usage, end
}

// shimReply answers the request with its ID.
type shimReply struct {
	ID      int         `json:"id"`
	Started int         `json:"started,omitempty"` // process number
	Failed  *StartError `json:"failed,omitempty"`
	Exited  *uint32     `json:"exited,omitempty"` // wait status
	Usage   *Usage      `json:"usage,omitempty"`
	Left    int         `json:"left,omitempty"` // processes that do not end
}

// shim is the parent of one tree.
type shim struct {
	out struct {
		sync.Mutex
		*json.Encoder
	}
	killing sync.Mutex    // one killBelow at a time
	more    chan struct{} // to the reaper: there is a child again

	mu       sync.Mutex
	runID    int // the request of main
	main     int // the command that runs, 0 if none
	starting bool
	early    map[int]syscall.WaitStatus // reaped while starting
	empty    chan struct{}              // closed while there are no children
}

// ShimMain is a shim's whole life; its result is the exit code. It ends with
// its socket, and takes the tree with it.
func ShimMain() int {
	if len(os.Args) > 1 && os.Args[1] == shimProbe {
		return 0
	}
	// The commands' parent death signal is that of the thread that forked
	// them: the first thread lives as long as the process.
	runtime.LockOSThread()
	closeOnExec(shimSocket)
	// What it looks after runs as the same user: none of that is to look into
	// it, or to take its socket.
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "waypoint job shim: become subreaper:", err)
		return 1
	}
	// A signal meant for the job must not end what looks after it. Caught,
	// not ignored: what is ignored would be so in the commands too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM)

	syscall.SetNonblock(shimSocket, true) // so that a goroutine waits for it, not a thread
	socket := os.NewFile(shimSocket, "control socket")
	s := &shim{more: make(chan struct{}, 1), empty: make(chan struct{})}
	close(s.empty)
	s.out.Encoder = json.NewEncoder(socket)
	go s.reap()
	for in := json.NewDecoder(socket); ; {
		var req shimRequest
		if err := in.Decode(&req); err != nil {
			// Whoever held the tree is gone.
			s.kill()
			return 1
		}
		switch {
		case req.Run != nil:
			s.run(req.ID, req.Run)
		case req.Term:
			s.term()
			s.reply(shimReply{ID: req.ID})
		case req.Kill:
			go func() { s.reply(shimReply{ID: req.ID, Left: s.kill()}) }()
		case req.Await:
			go func() {
				<-s.childless()
				s.reply(shimReply{ID: req.ID})
			}()
		case req.Close:
			left := s.kill()
			if left == 0 {
				<-s.childless()
			}
			var ru syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_CHILDREN, &ru)
			var u Usage
			u.add(&ru)
			s.reply(shimReply{ID: req.ID, Usage: &u, Left: left})
			return 0
		}
	}
}

func (s *shim) reply(r shimReply) {
	s.out.Lock()
	defer s.out.Unlock()
	s.out.Encode(r) // an error is seen by the reading side as well
}

// run starts a command.
func (s *shim) run(id int, c *Command) {
	stdin, err := c.openStdin()
	if err == nil && stdin == nil {
		stdin, err = os.Open(os.DevNull)
	}
	if err != nil {
		s.reply(shimReply{ID: id, Failed: asStartError(c, err)})
		return
	}
	defer stdin.Close()
	path, err := c.resolve()
	if err != nil {
		s.reply(shimReply{ID: id, Failed: asStartError(c, err)})
		return
	}
	s.mu.Lock()
	s.starting, s.early = true, map[int]syscall.WaitStatus{}
	s.mu.Unlock()
	var pid int
	err = c.launch(path, func(path string, argv []string) error {
		p, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
			Dir:   c.Dir,
			Env:   c.Env,
			Files: []uintptr{stdin.Fd(), shimStdout, shimStderr},
			Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
		})
		if errors.Is(err, syscall.ENOEXEC) {
			return err
		}
		if err != nil {
			return execError(c.Argv[0], path, err)
		}
		pid = p
		resetOOMScore(pid)
		return nil
	})
	if err == nil {
		// Before anybody can say that it has exited: until starting is over
		// the reaper only takes note.
		s.reply(shimReply{ID: id, Started: pid})
	}
	s.mu.Lock()
	ws, ended := s.early[pid]
	s.starting, s.early = false, nil
	if err == nil && !ended {
		s.main, s.runID = pid, id
	}
	select {
	case <-s.empty:
		if err == nil {
			s.empty = make(chan struct{})
		}
	default:
	}
	s.mu.Unlock()
	if err != nil {
		s.reply(shimReply{ID: id, Failed: asStartError(c, err)})
		return
	}
	select {
	case s.more <- struct{}{}:
	default:
	}
	if ended {
		s.reply(shimReply{ID: id, Exited: new(uint32(ws))})
	}
}

func asStartError(c *Command, err error) *StartError {
	if se, ok := errors.AsType[*StartError](err); ok {
		return se
	}
	return startError(c.Argv[0], err)
}

// reap collects every child that ends, for ever.
func (s *shim) reap() {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WALL, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			// No child, so nothing below either: what it left would be here.
			s.mu.Lock()
			if s.main == 0 && !s.starting {
				select {
				case <-s.empty:
				default:
					close(s.empty)
				}
			}
			s.mu.Unlock()
			<-s.more
		default:
			s.reaped(pid, ws)
		}
	}
}

func (s *shim) reaped(pid int, ws syscall.WaitStatus) {
	s.mu.Lock()
	if s.starting {
		s.early[pid] = ws
	}
	ended, id := pid == s.main, s.runID
	if ended {
		s.main = 0
	}
	s.mu.Unlock()
	if ended {
		s.reply(shimReply{ID: id, Exited: new(uint32(ws))})
	}
}

// childless is closed while there are no children.
func (s *shim) childless() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.empty
}

func (s *shim) isChildless() bool {
	select {
	case <-s.childless():
		return true
	default:
		return false
	}
}

// term asks every process below to end.
func (s *shim) term() {
	for _, p := range descendants(os.Getpid()) {
		p.signal(unix.SIGTERM, p.alive)
		p.signal(unix.SIGCONT, p.alive)
	}
}

// kill kills every process below and returns how many do not end.
func (s *shim) kill() int {
	s.killing.Lock()
	defer s.killing.Unlock()
	if s.isChildless() {
		return 0
	}
	return killBelow(os.Getpid(), time.Now().Add(endLimit))
}
