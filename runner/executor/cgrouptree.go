package executor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupTree is a tree in a cgroup of its own.
type cgroupTree struct {
	e     *Executor
	o     Options
	cg    cgroup
	dir   *os.File    // of the cgroup, for clone3
	main  *os.Process // the command that was started, until Wait
	usage Usage       // by what Wait was told, where the cgroup does not count
}

func (e *Executor) newCgroupTree(o Options) (*cgroupTree, error) {
	cg := cgroup{path: filepath.Join(e.cgroup.path, o.Name)}
	if err := writeHandle(o.Handle, handle{Cgroup: cg.path}); err != nil {
		return nil, err
	}
	err := os.Mkdir(cg.path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		// Left by an executor that died: nothing in it is ours.
		if err := cg.end(); err != nil {
			return nil, err
		}
		err = os.Mkdir(cg.path, 0o755)
	}
	if errors.Is(err, fs.ErrNotExist) {
		// The root is removed by whoever thinks to be its last user.
		if err := os.Mkdir(e.cgroup.path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		enableControllers(e.cgroup.path)
		err = os.Mkdir(cg.path, 0o755)
	}
	if err != nil {
		return nil, err
	}
	fd, err := ignoreEINTRFd(func() (int, error) {
		return unix.Open(cg.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		cg.remove()
		return nil, &fs.PathError{Op: "open", Path: cg.path, Err: err}
	}
	return &cgroupTree{e: e, o: o, cg: cg, dir: os.NewFile(uintptr(fd), cg.path)}, nil
}

func ignoreEINTRFd(f func() (int, error)) (int, error) {
	for {
		if fd, err := f(); err != unix.EINTR {
			return fd, err
		}
	}
}

func (t *cgroupTree) Isolation() string { return IsolationCgroup }

func (t *cgroupTree) Start(c Command) (err error) {
	t.e.start.run(func() { err = t.start(c) })
	return err
}

// start is Start in a thread of the starter.
func (t *cgroupTree) start(c Command) error {
	user := t.e.cfg.User
	stdin := t.e.devnull
	var path string
	var err error
	user.as(func() {
		var f *os.File
		if f, err = c.openStdin(); err != nil {
			return
		}
		if f != nil {
			stdin = f
		}
		path, err = c.resolve()
	})
	if stdin != t.e.devnull {
		defer stdin.Close()
	}
	if err != nil {
		return err
	}
	attr := &os.ProcAttr{
		Dir:   c.Dir,
		Env:   c.Env,
		Files: []*os.File{stdin, t.o.Stdout, t.o.Stderr},
		Sys: &syscall.SysProcAttr{
			Setsid:      true, // no terminal's keys reach it
			Pdeathsig:   syscall.SIGKILL,
			Credential:  user.credential(),
			UseCgroupFD: true,
			CgroupFD:    int(t.dir.Fd()),
		},
	}
	return c.launch(path, func(path string, argv []string) error {
		p, err := os.StartProcess(path, argv, attr)
		if err == nil {
			t.main = p
			user.as(func() { resetOOMScore(p.Pid) }) // the file is the command's
			return nil
		}
		if errors.Is(err, syscall.ENOEXEC) {
			return err
		}
		// The errors of clone3 and of exec come mixed; one that exec gives to
		// an odd file must not cost all other trees their cgroups.
		if perr := t.probe(err); perr != nil {
			return fmt.Errorf("%w: %w", errNoCgroup, perr)
		}
		user.as(func() { err = execError(c.Argv[0], path, err) })
		return err
	})
}

// probe starts a program in the cgroup that is known to start, where a command
// has failed in a way that clone3 can fail too.
func (t *cgroupTree) probe(failed error) error {
	switch errno, _ := errors.AsType[syscall.Errno](failed); errno {
	case syscall.ENOSYS, syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.EOPNOTSUPP, syscall.EBUSY, syscall.ENODEV:
	default:
		return nil
	}
	p, err := os.StartProcess(t.e.cfg.Shim, []string{ShimArg, shimProbe}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{},
		Files: []*os.File{t.e.devnull, t.e.devnull, t.e.cfg.ShimLog},
		Sys: &syscall.SysProcAttr{
			Setsid:      true,
			Credential:  t.e.cfg.User.credential(),
			UseCgroupFD: true,
			CgroupFD:    int(t.dir.Fd()),
		},
	})
	if err != nil {
		return err
	}
	_, err = p.Wait()
	return err
}

func (t *cgroupTree) Wait() Exit {
	p := t.main
	t.main = nil
	st, err := p.Wait()
	if err != nil {
		return Exit{Err: err}
	}
	ru, _ := st.SysUsage().(*syscall.Rusage)
	t.usage.add(ru)
	return exitOf(st.Sys().(syscall.WaitStatus))
}

func (t *cgroupTree) Term() {
	t.cg.signal(unix.SIGTERM)
	// A stopped process gets it when it goes on.
	t.cg.signal(unix.SIGCONT)
}

func (t *cgroupTree) Kill() {
	if err := t.cg.kill(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.e.log.Error("kill cgroup", "cgroup", t.cg.path, "error", err.Error())
	}
}

func (t *cgroupTree) AwaitEmpty(d time.Duration) bool { return t.cg.awaitEmpty(d) }

func (t *cgroupTree) Close() (Usage, error) {
	defer t.dir.Close()
	t.cg.usage(&t.usage)
	// The usual case: nothing lives in it, and it goes at once.
	if unix.Rmdir(t.cg.path) == nil {
		return t.usage, nil
	}
	if err := t.cg.kill(); err == nil && t.cg.awaitEmpty(time.Second) {
		t.cg.usage(&t.usage)
	}
	return t.usage, t.cg.end()
}

// resetOOMScore gives a command the usual chance of being killed for want of
// memory where this process has been given less.
func resetOOMScore(pid int) {
	if ownOOMScore() < 0 {
		os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
	}
}
