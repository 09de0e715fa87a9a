package statedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/waypointd/waypoint/mux/wire"
)

// flagName keeps flags apart from everything that has another form of name.
var flagName = regexp.MustCompile(`^[a-z][a-z-]{0,31}$`)

// Flag reports whether a flag is set.
func (d *Dir) Flag(name string) (bool, error) {
	if err := checkFlag(name); err != nil {
		return false, err
	}
	_, err := os.Lstat(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, d.explain("read", err)
	}
	return true, nil
}

// SetFlag sets a flag or takes it away, durably: a process that dies behind
// its return has done it. To do what is done already is no error.
func (d *Dir) SetFlag(name string, on bool) error {
	if err := checkFlag(name); err != nil {
		return err
	}
	if on {
		_, err := d.createFile(name, nil, 0o600)
		return err
	}
	err := os.Remove(d.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = SyncDir(filepath.Dir(d.Path(name)))
	}
	if err != nil {
		return d.explain("write", err)
	}
	return nil
}

func checkFlag(name string) error {
	if !flagName.MatchString(name) || slices.Contains([]string{versionFile, lockFile, idFile, tokenFile, "jobs"}, name) {
		return wire.Errorf(wire.BadUsage, "%q is no name of a flag in the state directory", name)
	}
	return nil
}
