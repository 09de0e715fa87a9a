// Package contexts keeps what a user's command line knows of servers: for each
// a name, an address, how its certificate is judged, and the token to log in
// with.
//
//	DIR/contexts/NAME.toml   one context, 0600
//	DIR/default-context      the name of the default one, a line
//
// DIR is $XDG_CONFIG_HOME/waypoint. Names are valid as a runner's id is.
//
// Every file is complete or absent, never half written: temporary file, fsync,
// rename, fsync of the directory. A context may hold a token, so it is written
// with mode 0600 into a directory of mode 0700, and read with suspicion: one
// that others can read is closed to them, with a note that they may have the
// token, where the file is the user's own, and refused where it is not; one
// that others can write, or whose directory they can, is refused, because
// what it says may not be the user's. A symbolic link in a context's place is
// refused. Unknown keys are refused, as in every file of configuration.
//
// No error shows a token.
package contexts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/cmd/internal/config"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// Context is how one server is reached, and as whom. Empty values leave it to
// what the command line does without them.
type Context struct {
	ServerAddr     string `toml:"server_addr"`
	TLS            *bool  `toml:"tls,omitempty"`             // nil: on for TCP
	TLSCA          string `toml:"tls_ca,omitempty"`          // file of certificates, in place of the system's
	TLSFingerprint string `toml:"tls_fingerprint,omitempty"` // of a certificate that is trusted as well
	TLSSkipVerify  bool   `toml:"tls_skip_verify,omitempty"` // any certificate will do
	Token          string `toml:"token,omitempty"`           //
	Workspace      string `toml:"workspace,omitempty"`       // in place of "default"
}

// Store is the contexts of one user. It holds nothing in memory, so several
// processes may use the same files.
type Store struct {
	dir string // …/waypoint
}

// maxFile is far more than a context with the longest token needs.
const maxFile = 64 << 10

// New is the store in a user's directory of configuration files ($XDG_CONFIG_HOME); it
// makes nothing.
func New(configHome string) *Store {
	return &Store{dir: filepath.Join(configHome, "waypoint")}
}

// Path is where a context is kept.
func (s *Store) Path(name string) string { return filepath.Join(s.folder(), name+extension) }

const extension = ".toml"

func (s *Store) folder() string      { return filepath.Join(s.dir, "contexts") }
func (s *Store) defaultFile() string { return filepath.Join(s.dir, "default-context") }

// CheckName reports whether a context can be called so. The error is BadUsage.
func CheckName(name string) error {
	if wire.CheckID(name) == nil {
		return nil
	}
	return wire.Errorf(wire.BadUsage, "%q is no name of a context", name).
		WithHint("use up to 63 letters, digits, '.', '_' and '-', a letter or digit first")
}

// Create writes a context that is not there yet; else the error is Conflict.
func (s *Store) Create(name string, c Context) error {
	return s.write(name, c, false)
}

// Set writes a context, in place of the one of that name if there is one.
func (s *Store) Set(name string, c Context) error {
	return s.write(name, c, true)
}

func (s *Store) write(name string, c Context, replace bool) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("write context: %w", err)
	}
	var text bytes.Buffer
	text.WriteString("# Kept by waypoint login and waypoint context.\n")
	if err := toml.NewEncoder(&text).Encode(c); err != nil {
		return wire.Errorf(wire.Internal, "write context %q: %v", name, err)
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return explain("write", name, err)
	}
	if err := os.Mkdir(s.folder(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return explain("write", name, err)
	}
	if err := s.checkFolder(); err != nil {
		return err
	}
	s.sweep()
	err := put(s.Path(name), text.Bytes(), replace)
	if errors.Is(err, fs.ErrExist) && !replace {
		return taken(name)
	}
	if err != nil {
		return explain("write", name, err)
	}
	return nil
}

// sweep removes what writers have left that were killed: it may hold a token.
// One that still writes is done long before.
func (s *Store) sweep() {
	left, _ := filepath.Glob(filepath.Join(s.folder(), tempPrefix+"*"))
	for _, path := range left {
		if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > time.Hour {
			os.Remove(path)
		}
	}
}

func taken(name string) error {
	return wire.Errorf(wire.Conflict, "write context %q: there is one of that name", name).
		WithHint("choose another name, or waypoint context delete %s", name)
}

// Load reads a context. note, where it is not empty, is to be said to the
// user: something was wrong with the file and has been repaired. Errors are
// NotFound, BadUsage (content), Denied (others could have written it, or it
// cannot be read).
func (s *Store) Load(name string) (c Context, note string, err error) {
	if err := CheckName(name); err != nil {
		return c, "", fmt.Errorf("read context: %w", err)
	}
	f, err := os.OpenFile(s.Path(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return c, "", missing(name)
	case errors.Is(err, unix.ELOOP):
		return c, "", wire.Errorf(wire.Denied, "read context %q: %s is a symbolic link", name, s.Path(name)).
			WithHint("put the file itself there")
	case err != nil:
		return c, "", explain("read", name, err)
	}
	defer f.Close()
	if err := s.checkFolder(); err != nil {
		return c, "", err
	}
	if note, err = s.guard(name, f); err != nil {
		return c, "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return c, "", explain("read", name, err)
	case len(text) > maxFile:
		return c, "", wire.Errorf(wire.BadUsage, "read context %q: %s is over %d bytes long", name, s.Path(name), maxFile)
	}
	if err := config.Parse(s.Path(name), string(text), &c); err != nil {
		return Context{}, "", hide(err)
	}
	if c.ServerAddr == "" {
		return Context{}, "", wire.Errorf(wire.BadUsage, "read context %q: %s has no server_addr", name, s.Path(name))
	}
	return c, note, nil
}

func missing(name string) error {
	return wire.Errorf(wire.NotFound, "context %q not found", name).WithHint("waypoint context list")
}

// guard makes sure that a context's file is a file that others can neither
// write nor read.
func (s *Store) guard(name string, f *os.File) (note string, err error) {
	path := s.Path(name)
	info, err := f.Stat()
	if err != nil {
		return "", explain("read", name, err)
	}
	mode := info.Mode()
	switch {
	case !mode.IsRegular():
		return "", wire.Errorf(wire.BadUsage, "read context %q: %s is no file", name, path)
	case mode&0o022 != 0:
		return "", wire.Errorf(wire.Denied, "read context %q: others can write %s (mode %04o)", name, path, mode.Perm()).
			WithHint("look whether it still says what you want, then chmod 600 %s", path)
	case mode&0o077 == 0:
		return "", nil
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return "", wire.Errorf(wire.Denied, "read context %q: others can read %s (mode %04o), which belongs to user %d", name, path, mode.Perm(), owner).
			WithHint("have its owner chmod 600 %s", path)
	}
	if err := f.Chmod(0o600); err != nil {
		return "", wire.Errorf(wire.Denied, "read context %q: others can read %s (mode %04o), and it cannot be closed to them: %v", name, path, mode.Perm(), err).
			WithHint("chmod 600 %s", path)
	}
	return fmt.Sprintf("others could read %s (mode %04o); it is closed to them now, but what they have read they have: make a new token if in doubt", path, mode.Perm()), nil
}

// checkFolder refuses a directory whose files others can exchange.
func (s *Store) checkFolder() error {
	info, err := os.Stat(s.folder())
	if err != nil {
		return explain("open", "", err)
	}
	if mode := info.Mode(); mode&0o022 != 0 {
		return wire.Errorf(wire.Denied, "open contexts: others can write in %s (mode %04o)", s.folder(), mode.Perm()).
			WithHint("look whether the files in it are yours, then chmod 700 %s", s.folder())
	}
	return nil
}

// Names are the contexts there are, in order.
func (s *Store) Names() ([]string, error) {
	entries, err := os.ReadDir(s.folder())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, explain("list", "", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), extension); ok && wire.CheckID(name) == nil && !e.IsDir() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Default is the name of the default context, "" where there is none. That a
// context of that name exists is not certain.
func (s *Store) Default() (string, error) {
	text, err := os.ReadFile(s.defaultFile())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", explain("read default", "", err)
	}
	name := strings.TrimSpace(string(text))
	if name != "" && wire.CheckID(name) != nil {
		return "", wire.Errorf(wire.BadUsage, "read default context: %s does not hold the name of one", s.defaultFile()).
			WithHint("waypoint context use NAME")
	}
	return name, nil
}

// SetDefault makes a context that exists the default.
func (s *Store) SetDefault(name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("use context: %w", err)
	}
	if _, err := os.Lstat(s.Path(name)); errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("use context: %w", missing(name))
	} else if err != nil {
		return explain("use", name, err)
	}
	if err := put(s.defaultFile(), []byte(name+"\n"), true); err != nil {
		return explain("use", name, err)
	}
	return nil
}

// Rename gives a context another name, which is Conflict if it is taken. The
// default one stays the default.
func (s *Store) Rename(from, to string) error {
	for _, name := range []string{from, to} {
		if err := CheckName(name); err != nil {
			return fmt.Errorf("rename context: %w", err)
		}
	}
	usual, err := s.Default()
	if err != nil {
		return err
	}
	switch err := statedir.RenameNew(s.Path(from), s.Path(to)); {
	case from != to && errors.Is(err, fs.ErrExist):
		return taken(to)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("rename context: %w", missing(from))
	case from == to && errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return explain("rename", from, err)
	}
	if err := statedir.SyncDir(s.folder()); err != nil {
		return explain("rename", from, err)
	}
	if usual != from {
		return nil
	}
	return s.SetDefault(to)
}

// Delete removes a context with its token; that it is not there is no error.
// If it was the default there is none from then on.
func (s *Store) Delete(name string) error {
	if err := CheckName(name); err != nil {
		return fmt.Errorf("delete context: %w", err)
	}
	// What cannot be read names nothing that would have to be kept.
	if usual, err := s.Default(); err == nil && usual == name {
		if err := os.Remove(s.defaultFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return explain("delete", name, err)
		}
	}
	err := os.Remove(s.Path(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err == nil {
		err = statedir.SyncDir(s.folder())
	}
	if err != nil {
		return explain("delete", name, err)
	}
	return nil
}

// explain is an error of the file system as ours.
func explain(verb, name string, err error) error {
	what := "contexts"
	if name != "" {
		what = fmt.Sprintf("context %q", name)
	}
	kind := wire.Internal
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		kind = wire.Denied
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		kind = wire.BadUsage
	}
	return wire.Errorf(kind, "%s %s: %v", verb, what, err)
}

// tokenText is what begins as a token does.
var tokenText = regexp.MustCompile(`\b(wp[a-z]{3}_)[A-Za-z0-9_-]+`)

// hide takes tokens out of an error about a file whose syntax is wrong, which
// may quote any of its words.
func hide(err error) error {
	e := &wire.Error{Kind: wire.KindOf(err), Message: tokenText.ReplaceAllString(err.Error(), "$1…")}
	if we, ok := errors.AsType[*wire.Error](err); ok {
		e.Hint = tokenText.ReplaceAllString(we.Hint, "$1…")
	}
	return e
}
