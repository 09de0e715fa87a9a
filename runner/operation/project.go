package operation

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/waypointd/waypoint/mux/wire"
)

// ProjectFile is the name of the project file.
const ProjectFile = "waypoint.toml"

// maxProjectFile is far above any project file that a person wrote.
const maxProjectFile = 1 << 20

// Project is a parsed and checked project file. It never changes.
type Project struct {
	name       string
	root       string
	sourceType string
	ignore     []string
	env        map[string]string
	apps       []app
}

// app is one [[app]] of a project, in the order of the file.
type app struct {
	name       string
	profile    string
	operations map[wire.Operation]appOperation
}

// appOperation is one of an app's tables.
type appOperation struct {
	use     string
	command []string
	script  string
	output  []string
	dir     string
	env     map[string]string
	hooks   []wire.Hook
}

// Find looks for the project file in dir and its parents, up to the user's
// home directory or the file system's root, and loads the first one. In a
// parent, one that belongs to another user (and not to root) is passed over:
// below a directory like /tmp anybody could put one in the way.
func Find(dir string) (*Project, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	home := homeDir()
	foreign := ""
	for d := abs; ; d = filepath.Dir(d) {
		path := filepath.Join(d, ProjectFile)
		fi, err := os.Stat(path)
		switch {
		case err == nil && (d == abs || trusted(fi)):
			return Load(path)
		case err == nil:
			foreign = path
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fileError("find project file", err)
		}
		if d == home || d == filepath.Dir(d) {
			break
		}
	}
	if foreign != "" {
		return nil, wire.Errorf(wire.NotFound, "find project file: %s belongs to another user and was passed over", foreign).
			WithHint("change to %s if it is the one you want", filepath.Dir(foreign))
	}
	return nil, wire.Errorf(wire.NotFound, "find project file: no %s in %s or its parents", ProjectFile, abs).
		WithHint("change to the directory of a project, or make one with: waypoint init")
}

// trusted reports whether a file is this process's user's or root's.
func trusted(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && (st.Uid == 0 || int(st.Uid) == os.Getuid())
}

// homeDir is the home of this process's user as the user database knows it,
// "" where it does not; the environment is the command's to read.
func homeDir() string {
	u, err := user.LookupId(strconv.Itoa(os.Getuid()))
	if err != nil {
		return ""
	}
	return filepath.Clean(u.HomeDir)
}

// fileError is the error of a project file that cannot be read: Denied where
// it is for want of permission, else BadUsage.
func fileError(doing string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return wire.Errorf(wire.Denied, "%s: %v", doing, err)
	}
	return wire.Errorf(wire.BadUsage, "%s: %v", doing, err)
}

// Load reads a project file. Errors are NotFound where there is none, Denied
// where it may not be read, else BadUsage with file, line and, for an unknown key, the nearest known one.
func Load(path string) (*Project, error) {
	data, err := readProject(path)
	if err != nil {
		return nil, err
	}
	p, err := parseProject(path, data)
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	p.root = filepath.Dir(abs)
	return p, nil
}

// readProject reads a plain file: somebody else's tree may have a pipe, which nobody
// writes to, or a device without an end in its place.
func readProject(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, wire.Errorf(wire.NotFound, "read project file: %v", err)
	}
	if err != nil {
		return nil, fileError("read project file", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fileError("read project file", cmp.Or(err, fmt.Errorf("%s is no plain file", path)))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxProjectFile+1))
	if err != nil {
		return nil, fileError("read project file", err)
	}
	if len(data) > maxProjectFile {
		return nil, wire.Errorf(wire.TooLarge, "read project file: %s is longer than %d bytes", path, maxProjectFile)
	}
	return data, nil
}

// Name is the project's.
func (p *Project) Name() string { return p.name }

// Root is the directory of the project file, absolute.
func (p *Project) Root() string { return p.root }

// Apps are the names of the apps in the order of the file.
func (p *Project) Apps() []string {
	names := make([]string, len(p.apps))
	for i, a := range p.apps {
		names[i] = a.name
	}
	return names
}

// SourceType is "upload" or "none".
func (p *Project) SourceType() string { return p.sourceType }

// Env is the environment of every job of the project.
func (p *Project) Env() map[string]string { return maps.Clone(p.env) }

// Ignore are the patterns to leave out besides those of the ignore files.
func (p *Project) Ignore() []string { return slices.Clone(p.ignore) }

// Spec is the job for one operation of one app, without target, source and
// workspace, which are the caller's. An app or an operation that the file does
// not define is NotFound.
func (p *Project) Spec(op wire.Operation, app string) (wire.JobSpec, error) {
	for _, a := range p.apps {
		if a.name != app {
			continue
		}
		o, ok := a.operations[op]
		if !ok {
			return wire.JobSpec{}, wire.Errorf(wire.NotFound, "app %q has no operation %q in %s", app, op, ProjectFile).
				WithHint("add a table [app.%s] to it", op)
		}
		env := maps.Clone(p.env)
		if env == nil && len(o.env) > 0 {
			env = map[string]string{}
		}
		maps.Copy(env, o.env)
		return wire.JobSpec{
			Operation: op,
			Project:   p.name,
			App:       a.name,
			Profile:   a.profile,
			Use:       o.use,
			Command:   slices.Clone(o.command),
			Script:    o.script,
			Hooks:     slices.Clone(o.hooks),
			Output:    slices.Clone(o.output),
			Dir:       o.dir,
			Env:       env,
		}, nil
	}
	if len(p.apps) == 0 {
		return wire.JobSpec{}, wire.Errorf(wire.NotFound, "project %q has no apps", p.name).
			WithHint("add an [[app]] to %s", ProjectFile)
	}
	return wire.JobSpec{}, wire.Errorf(wire.NotFound, "project %q has no app %q; it has %s", p.name, app, strings.Join(p.Apps(), ", "))
}

// Example is the text of a project file to begin with. A name that cannot be
// a project's is changed into one that can.
func Example(project string) string {
	return strings.ReplaceAll(example, "PROJECT", nameFrom(project))
}

const example = `project = "PROJECT"

# How another machine gets the code: what .gitignore and .waypointignore leave
# of this directory is uploaded; files that have not changed are sent once.
[source]
type = "upload" # upload | none
ignore = []

# For every job of this project.
[env]
# LOG_LEVEL = "info"

[[app]]
name = "PROJECT"

  # Makes an artifact of what it lists as output.
  [app.build]
  use = "exec"
  command = ["make"]
  output = ["bin/"]

  # Finds the artifact unpacked in $WAYPOINT_ARTIFACT. Lines key=value written
  # to $WAYPOINT_OUTPUT are kept as the deployment's outputs.
  [app.deploy]
  use = "exec"
  script = """
  ls -l "$WAYPOINT_ARTIFACT"
  echo "artifact=$WAYPOINT_ARTIFACT" >> "$WAYPOINT_OUTPUT"
  """

  # Finds the deployment's outputs as $WAYPOINT_DEPLOYMENT_<KEY>.
  [app.release]
  use = "exec"
  script = """
  echo "deployment $WAYPOINT_DEPLOYMENT now serves"
  """
`

const maxName = 63

// validName says what is wrong with the name of a project or an app; "" is
// nothing. Names become parts of file names, of unit names and of addresses.
func validName(s string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > maxName:
		return "is longer than " + strconv.Itoa(maxName) + " characters"
	case !isAlnum(s[0]):
		return "does not begin with a letter or a digit"
	}
	for i := range len(s) {
		if !isNameByte(s[i]) {
			return "has characters other than letters, digits, '-', '_' and '.'"
		}
	}
	return ""
}

func nameFrom(s string) string {
	b := []byte(s)
	for i, c := range b {
		if !isNameByte(c) {
			b[i] = '-'
		}
	}
	for len(b) > 0 && !isAlnum(b[0]) {
		b = b[1:]
	}
	if len(b) == 0 {
		return "app"
	}
	return string(b[:min(len(b), maxName)])
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isNameByte(c byte) bool { return isAlnum(c) || c == '-' || c == '_' || c == '.' }
