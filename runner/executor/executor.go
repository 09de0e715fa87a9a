// Package executor runs commands and all that comes of them: processes and
// cgroups, used by the supervisor. It knows nothing of jobs, logs or sessions.
//
// A [Tree] is the set of processes that one attempt's commands have started,
// directly or not: also those that forked twice, made a session of their own
// or cleared their environment. Its commands run one after the other; what
// they leave running stays until the tree is closed, which kills the rest.
// There are two kinds of tree, and nothing else differs between them:
//
//	cgroup         a cgroup (version 2) of its own below this process's,
//	               waypoint-KEY/NAME. Commands are started inside it by clone3
//	               and it is ended by cgroup.kill, so no process escapes that
//	               is not root and means to.
//
//	process-group  where no such cgroup can be had. A small process, the shim
//	               (this program again, see ShimArg), is the parent of the
//	               tree's commands and the subreaper of whatever they leave;
//	               it finds them by their parents in /proc.
//
//	supervisor ──fork──▶ command            supervisor ──▶ shim ──▶ command
//	     └ cgroup waypoint-KEY/NAME              ◀──socket──▶
//
// No process is ever killed by a number that was remembered: it is read from
// the kernel, held by a pidfd, looked at again and only then signalled.
//
// When the process that holds a tree dies, a command dies with it (parent
// death signal), in process-group the whole tree (the shim sees its socket
// end). What is left of a cgroup is killed by whoever comes after:
// [KillLeftovers], by the handle file written before the first command.
//
// Commands may be another user's (see [User]): then so is a shim, and both have
// that user's groups and no capabilities. Threads of their own start them; the
// rest of this process stays what it is.
package executor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// The kinds of isolation.
const (
	IsolationCgroup       = "cgroup"
	IsolationProcessGroup = "process-group"
)

// Config of an Executor.
type Config struct {
	// Dir makes the cgroup's name: two executors with different directories
	// have nothing in common. At most one may be open for a directory.
	Dir string
	// Isolation asks for one kind; empty is the best that can be had.
	Isolation string
	// Shim is the program that becomes a shim when its argument 0 is ShimArg;
	// empty is this one.
	Shim string
	// ShimLog is the standard error of shims; nil is this process's.
	ShimLog *os.File
	// Controllers lets the executor move this process into a leaf of its own
	// cgroup where systemd has delegated that and no other process is in it,
	// so that memory can be accounted for each tree.
	Controllers bool
	// User is whom commands, and shims, run as; nil is this process's own. They
	// have its groups and no capabilities, and what may be executed or read is
	// asked for it. What it cannot have is an error of New.
	User   *User
	Logger *slog.Logger // nil discards
}

// Executor starts trees. It is safe for concurrent use.
type Executor struct {
	cfg      Config
	log      *slog.Logger
	cgroup   *cgroupRoot // nil: process-group
	noCgroup atomic.Bool // clone3 into a cgroup was refused: no more of it
	start    *starter    // threads that fork; they live as long as the Executor
	devnull  *os.File    // standard input of commands without one
}

// New finds out how processes can be isolated here. As commands get their
// three files and no other, everything that this process has inherited open is marked to be
// closed in them.
func New(cfg Config) (*Executor, error) {
	e := &Executor{cfg: cfg, log: cfg.Logger}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Shim == "" {
		// Not by its path: an upgrade may have replaced the file, and the
		// shim must speak this version's protocol.
		e.cfg.Shim = "/proc/self/exe"
	}
	if e.cfg.ShimLog == nil {
		e.cfg.ShimLog = os.Stderr
	}
	switch cfg.Isolation {
	case "", IsolationCgroup:
		root, err := openCgroupRoot(cfg.Dir, cfg.Controllers)
		if err != nil && cfg.Isolation == IsolationCgroup {
			return nil, fmt.Errorf("use cgroups: %w", err)
		}
		if err != nil {
			e.log.Info("jobs are isolated by process group only", "reason", err.Error())
		}
		e.cgroup = root
	case IsolationProcessGroup:
	default:
		return nil, fmt.Errorf("use isolation %q: it is not known", cfg.Isolation)
	}
	closeOnExec(3)
	devnull, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("open standard input: %w", err)
	}
	e.devnull = devnull
	if e.start, err = newStarter(min(2, runtime.GOMAXPROCS(0)), cfg.User); err != nil {
		e.closeFiles()
		return nil, err
	}
	if err := e.checkUser(); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// Isolation is how trees made from now on are isolated.
func (e *Executor) Isolation() string {
	if e.cgroup == nil || e.noCgroup.Load() {
		return IsolationProcessGroup
	}
	return IsolationCgroup
}

// Close ends the executor; its trees must have been closed.
func (e *Executor) Close() error {
	e.start.close()
	return e.closeFiles()
}

func (e *Executor) closeFiles() error {
	if e.cgroup != nil {
		e.cgroup.close()
	}
	return e.devnull.Close()
}

// Options of a tree.
type Options struct {
	Name   string   // names its cgroup: letters, digits, dots, hyphens, underscores
	Handle string   // the handle file; written before anything is started
	Stdout *os.File // of all its commands; the tree does not close them
	Stderr *os.File
}

// Tree is the processes of one attempt. Start and Wait are called by one
// goroutine in turn, Term and Kill by any.
type Tree interface {
	// Start starts a command. A *StartError says that it could not be, for
	// a reason of the command's own.
	Start(Command) error
	// Wait waits until the command that was started has ended; what it has
	// left running is not waited for.
	Wait() Exit
	// Term asks every process of the tree to end.
	Term()
	// Kill kills every process of the tree. More can be started afterwards.
	Kill()
	// AwaitEmpty waits until no process is left, at most for d.
	AwaitEmpty(d time.Duration) bool
	// Close kills what is left, waits until it is gone, and says what the
	// tree has used. The error is about processes that do not go.
	Close() (Usage, error)
	// Isolation is its kind.
	Isolation() string
}

// errNoCgroup says that clone3 into a cgroup is refused here.
var errNoCgroup = errors.New("processes cannot be started in a cgroup here")

// NewTree makes an empty tree.
func (e *Executor) NewTree(o Options) (Tree, error) {
	if !safeName(o.Name) {
		return nil, fmt.Errorf("make process tree: %q is no name for one", o.Name)
	}
	if e.Isolation() == IsolationCgroup {
		c, err := e.newCgroupTree(o)
		if err == nil {
			return &fallbackTree{e: e, o: o, cur: c}, nil
		}
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return nil, err // the handle's, which no other kind of tree can do without
		}
		e.log.Warn("make cgroup", "name", o.Name, "error", err.Error())
	}
	return e.newShimTree(o)
}

// safeName reports whether name can be one element of a path.
func safeName(name string) bool {
	if name == "" || len(name) > 200 || name[0] == '.' || name[0] == '-' {
		return false
	}
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
		default:
			return false
		}
	}
	return true
}
