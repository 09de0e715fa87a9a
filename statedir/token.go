package statedir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

const tokenFile = "token"

// Token is what the token file holds.
type Token struct {
	Text string // "" where there is no token
	Note string // for the log: what is or was wrong with the file, and what was done about it; "" where nothing is
}

// Token reads the token file: what is in it less the white space around it. A
// file that is absent or empty, also a symbolic link to nothing, is no token
// and no error. One whose mode is beyond 0600 is used, noted, and repaired
// where it is this process's own; the note stays until the file is changed, so
// that it reaches whoever logs it. What cannot be read, is no regular file, or
// is longer than wire.MaxToken is an error; no error shows what is in the file.
func (d *Dir) Token() (Token, error) {
	t, s, err := d.readToken(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.token = &s
	return t, err
}

// TokenFault is why the token file cannot be used: the error of Token, and nil
// where that has none. It only looks: what WatchToken tells is not affected.
func (d *Dir) TokenFault() error {
	_, _, err := d.lookAtToken(false)
	return err
}

// WriteToken puts a token in place of the file, 0600, durably: whoever reads
// it, also after a crash, finds the old token or the new one. A symbolic link
// is replaced, not followed.
func (d *Dir) WriteToken(text string) error {
	switch {
	case text == "" || strings.ContainsAny(text, " \t\r\n\v\f\x00"):
		return wire.Errorf(wire.BadUsage, "write token file %s: what is to be written is no token", d.Path(tokenFile))
	case len(text) >= wire.MaxToken: // a line feed is to follow
		return wire.Errorf(wire.BadUsage, "write token file %s: the token is longer than %d bytes", d.Path(tokenFile), wire.MaxToken)
	}
	if fi, err := os.Lstat(d.Path(tokenFile)); err == nil && fi.IsDir() {
		return wire.Errorf(wire.BadUsage, "write token file %s: a directory is in its place", d.Path(tokenFile)).
			WithHint("move that directory away")
	}
	return d.WriteFile(tokenFile, []byte(text+"\n"), 0o600)
}

// sight is what one look at the token file has shown, as far as it matters
// whether the next one shows the same.
type sight struct {
	text  string
	err   string
	loose bool // its mode is beyond 0600
}

// readToken reads the token file, and with repair closes it to other users.
func (d *Dir) readToken(repair bool) (Token, sight, error) {
	t, loose, err := d.lookAtToken(repair)
	s := sight{text: t.Text, loose: loose}
	if err != nil {
		s.err = err.Error()
	}
	return t, s, err
}

func (d *Dir) lookAtToken(repair bool) (t Token, loose bool, err error) {
	path := d.Path(tokenFile)
	f, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		if to, err := os.Readlink(path); err == nil {
			t.Note = fmt.Sprintf("token file %s is a symbolic link to %s, which does not exist", path, to)
		}
		return t, false, nil
	}
	if err != nil {
		return t, false, explainToken(path, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return t, false, explainToken(path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, wire.MaxToken+1))
	if err != nil {
		return t, false, explainToken(path, err)
	}
	if len(b) > wire.MaxToken {
		return t, false, wire.Errorf(wire.BadUsage, "read token file %s: it is longer than any token (%d bytes)", path, wire.MaxToken).
			WithHint("put the token alone into it")
	}
	t.Text = strings.TrimSpace(string(b))
	mode := fi.Mode().Perm()
	if loose = mode&^0o600 != 0; loose {
		t.Note = fmt.Sprintf("token file %s has mode %04o, more than 0600", path, mode)
		if repair {
			t.Note += ": " + setRight(f, fi)
			d.remember(f, t.Note)
		}
	} else {
		t.Note = d.remembered(fi)
	}
	return t, loose, nil
}

// setRight takes from the open file's mode what is beyond 0600, where this
// process owns it, and tells how that went.
func setRight(f *os.File, fi fs.FileInfo) string {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Sprintf("it belongs to user %d, who must do `chmod 600` to it", st.Uid)
	}
	if err := f.Chmod(fi.Mode().Perm() & 0o600); err != nil {
		return fmt.Sprintf("it cannot be repaired (%v)", cause(err))
	}
	return fmt.Sprintf("it has been repaired, the mode is %04o", fi.Mode().Perm()&0o600)
}

// repair is a token file as it was left after it had been set right.
type repair struct {
	file fs.FileInfo
	note string
}

func (d *Dir) remember(f *os.File, note string) {
	fi, err := f.Stat()
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.repaired = &repair{fi, note}
}

// remembered is the note of the file's repair, if nobody has touched it since.
func (d *Dir) remembered(fi fs.FileInfo) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.repaired == nil || !os.SameFile(fi, d.repaired.file) || changeTime(fi) != changeTime(d.repaired.file) {
		return ""
	}
	return d.repaired.note
}

func changeTime(fi fs.FileInfo) syscall.Timespec { return fi.Sys().(*syscall.Stat_t).Ctim }

// explainToken turns an error of the file system into one that says what to
// do about the token file.
func explainToken(path string, err error) error {
	switch c := cause(err); {
	case errors.Is(c, fs.ErrPermission):
		return wire.Errorf(wire.Denied, "read token file %s: no permission as user %d", path, os.Geteuid()).
			WithHint("make that user its owner, with mode 0600")
	case errors.Is(c, errIrregular), errors.Is(c, unix.ENXIO):
		return wire.Errorf(wire.BadUsage, "read token file %s: %v", path, c).
			WithHint("put a file with the token in its place")
	case errors.Is(c, unix.ELOOP), errors.Is(c, unix.ENOTDIR), errors.Is(c, unix.ENAMETOOLONG):
		return wire.Errorf(wire.BadUsage, "read token file %s: %v", path, c).
			WithHint("see where its symbolic link leads to, or put a file in its place")
	default:
		return wire.Errorf(wire.Internal, "read token file %s: %v", path, c)
	}
}

// cause is a file system's error less the path.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// errIrregular is in the chain of what openRegular says of what is no file.
var errIrregular = errors.New("no regular file")

type irregular struct{ what string }

func (e irregular) Error() string        { return "it is " + e.what + ", not a file" }
func (e irregular) Is(target error) bool { return target == errIrregular }

// openRegular opens a file to read it. It never waits, and does not open what
// is no regular file: to open a device may do something.
func openRegular(path string) (*os.File, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: path, Err: irregular{kindOf(fi.Mode())}}
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	// It may have been replaced meanwhile; therefore the flags.
	fi, err = f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: irregular{kindOf(fi.Mode())}}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}
