package executor

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// User is whom commands run as, where that is not this process's own user. To
// run them takes root, or the capabilities CAP_SETUID, CAP_SETGID and, to
// signal them, CAP_KILL.
type User struct {
	Name   string
	UID    int
	GID    int
	Groups []int // supplementary
}

// credential is what a new process becomes before it executes anything.
func (u *User) credential() *syscall.Credential {
	if u == nil {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(u.UID), Gid: uint32(u.GID)}
	for _, g := range u.Groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// starterCapabilities are all that is left to a thread that starts commands.
// The last one is for the parent death signal: the kernel asks whether the
// thread that dies might have sent it.
const starterCapabilities = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL

// enlist prepares the calling thread, and no other of this process, to start
// commands as the user: it gets the user's groups and keeps nothing that a
// command would inherit, as it does ambient capabilities. Those go also where
// there is no such user: what a service manager has given this process to change
// users with would make root of its own.
func (u *User) enlist() error {
	if u == nil {
		return dropAmbient()
	}
	if err := unix.Setgroups(u.Groups); err != nil {
		return fmt.Errorf("take the groups of user %s: %w", u.Name, err)
	}
	unix.SetfsgidRetGid(u.GID)
	gid, _ := unix.SetfsgidRetGid(-1) // changes nothing, and says how it is
	uid := -1
	u.as(func() { uid, _ = unix.SetfsuidRetUid(-1) })
	if gid != u.GID || uid != u.UID {
		return fmt.Errorf("look at files as user %s: %w", u.Name, unix.EPERM)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, want [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	want[0].Permitted = have[0].Permitted & starterCapabilities
	want[0].Effective = want[0].Permitted
	// What is not inheritable is no longer ambient either.
	if err := unix.Capset(&header, &want[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// dropAmbient takes from the calling thread what its commands would inherit of
// capabilities, where there are any that they get whatever they execute.
func dropAmbient() error {
	ambient := false
	for bit := uintptr(0); bit <= unix.CAP_LAST_CAP; bit++ {
		set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, bit, 0, 0)
		if err != nil {
			break // a kernel that knows no more of them
		}
		ambient = ambient || set == 1
	}
	if !ambient {
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	caps[0].Inheritable, caps[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// as calls f while the calling thread, which has enlisted, sees files as the
// user does. f starts no process: whether it may be put into a cgroup would be
// asked of the user too.
func (u *User) as(f func()) {
	if u == nil {
		f()
		return
	}
	own, _ := unix.SetfsuidRetUid(u.UID)
	defer unix.SetfsuidRetUid(own)
	f()
}

// AsUser calls f in a thread that sees files as commands do. f starts no
// process.
func (e *Executor) AsUser(f func()) {
	e.start.run(func() { e.cfg.User.as(f) })
}

// CheckSearch says why commands may not pass through a directory, nil if they
// may.
func (e *Executor) CheckSearch(dir string) (err error) {
	e.AsUser(func() { err = access(dir) })
	return err
}

// checkUser starts a process as the user, to know that it can be done.
func (e *Executor) checkUser() (err error) {
	if e.cfg.User == nil {
		return nil
	}
	var p *os.Process
	e.start.run(func() {
		p, err = os.StartProcess(e.cfg.Shim, []string{ShimArg, shimProbe}, &os.ProcAttr{
			Dir:   "/",
			Env:   []string{},
			Files: []*os.File{e.devnull, e.devnull, e.cfg.ShimLog},
			Sys:   &syscall.SysProcAttr{Setsid: true, Credential: e.cfg.User.credential()},
		})
	})
	if err != nil {
		return fmt.Errorf("start a process as user %s: %w", e.cfg.User.Name, cause(err))
	}
	st, err := p.Wait()
	if err == nil && !st.Success() {
		err = errors.New(st.String())
	}
	if err != nil {
		return fmt.Errorf("run a process as user %s: %w", e.cfg.User.Name, err)
	}
	return nil
}

// access says why the calling thread may not execute a program, or search a
// directory; nil if it may. It asks for whom the thread sees files as, and the
// kernel, which knows about lists of access and read-only mounts.
func access(path string) error {
	err := ignoreEINTR(func() error {
		return unix.Faccessat2(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
	})
	if err != unix.ENOSYS && err != unix.EPERM {
		return err
	}
	// A kernel before 5.8, or a filter. The older call asks for the real user.
	if uid, _ := unix.SetfsuidRetUid(-1); uid == os.Getuid() {
		return ignoreEINTR(func() error { return unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, 0) })
	}
	// The start will tell what this does not.
	if info, err := os.Stat(path); err != nil || info.Mode()&0o111 == 0 {
		return unix.EACCES
	}
	return nil
}
