package supervisor

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/executor"
)

// jobCapabilities are what it takes to have jobs run as another user: to
// become it, to end what it runs, and to hand files over.
var jobCapabilities = []struct {
	bit  uint
	name string
}{
	{unix.CAP_SETUID, "CAP_SETUID"},
	{unix.CAP_SETGID, "CAP_SETGID"},
	{unix.CAP_KILL, "CAP_KILL"},
	{unix.CAP_CHOWN, "CAP_CHOWN"},
}

// jobUser is the user of a name for jobs to run as; nil where that is this
// process's own anyway.
func jobUser(name string) (*executor.User, error) {
	if name == "" {
		return nil, nil
	}
	found, err := user.Lookup(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		return nil, wire.Errorf(wire.BadUsage, "run jobs as user %s: there is no such user on this host", name).
			WithHint("make it (the packages do: systemd-sysusers), or name another one with --job-user")
	}
	if err != nil {
		return nil, wire.Errorf(wire.Unavailable, "run jobs as user %s: %v", name, err)
	}
	u := &executor.User{Name: found.Username}
	if u.UID, err = strconv.Atoi(found.Uid); err == nil {
		u.GID, err = strconv.Atoi(found.Gid)
	}
	if err != nil {
		return nil, wire.Errorf(wire.Unavailable, "run jobs as user %s: %v", name, err)
	}
	if u.UID == os.Geteuid() {
		return nil, nil
	}
	if u.UID == 0 {
		return nil, wire.Errorf(wire.BadUsage, "run jobs as user %s: only a supervisor of that user's may", name).
			WithHint("run the supervisor as root, or name another user with --job-user")
	}
	groups, err := found.GroupIds()
	if err != nil {
		return nil, wire.Errorf(wire.Unavailable, "run jobs as user %s: %v", name, err)
	}
	for _, g := range groups {
		id, err := strconv.Atoi(g)
		if err != nil {
			return nil, wire.Errorf(wire.Unavailable, "run jobs as user %s: group %q: %v", name, g, err)
		}
		if id != u.GID {
			u.Groups = append(u.Groups, id)
		}
	}
	if missing := missingCapabilities(); len(missing) > 0 {
		return nil, wire.Errorf(wire.Denied, "run jobs as user %s: this process has no %s", name, strings.Join(missing, ", ")).
			WithHint("start it as root or by its unit, which gives it these (AmbientCapabilities=), or let jobs run as its own user: no --job-user")
	}
	return u, nil
}

// missingCapabilities names those that this process lacks.
func missingCapabilities() (names []string) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	unix.Capget(&header, &have[0]) // what cannot be read is missing
	for _, c := range jobCapabilities {
		if have[0].Effective&(1<<c.bit) == 0 {
			names = append(names, c.name)
		}
	}
	return names
}

// letIn makes a supervisor's directory one that the jobs' user can pass
// through, and checks that it gets there.
func (s *Supervisor) letIn(dir string) error {
	if s.user == nil {
		return nil
	}
	if info, err := os.Stat(dir); err == nil && info.Mode()&0o011 != 0o011 {
		// Where it is not ours to change, what follows tells.
		os.Chmod(dir, info.Mode()|0o011)
	}
	if err := s.exec.CheckSearch(dir); err != nil {
		return wire.Errorf(wire.Denied, "run jobs as user %s: it does not get to %s: %v", s.user.Name, dir, err).
			WithHint("let others pass through each directory above it (chmod o+x), or keep jobs elsewhere with --dir")
	}
	return nil
}
