package statedir

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

const secret = "wprun_c2VjcmV0secret"

func put(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func TestToken(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"plain":         {secret, secret},
		"line":          {secret + "\n", secret},
		"white space":   {" \t\r\n\v\f" + secret + "\r\n\n \t", secret},
		"empty":         {"", ""},
		"only space":    {" \n\r\n\t ", ""},
		"as it is":      {"not a\ntoken \x00\xff.", "not a\ntoken \x00\xff."},
		"the longest":   {strings.Repeat("x", wire.MaxToken), strings.Repeat("x", wire.MaxToken)},
		"the longest 2": {strings.Repeat("x", wire.MaxToken-1) + "\n", strings.Repeat("x", wire.MaxToken-1)},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			put(t, d.Path(tokenFile), test.text, 0o600)
			if got, err := d.Token(); err != nil || got != (Token{Text: test.want}) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	d := open(t)
	if got, err := d.Token(); err != nil || got != (Token{}) {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	if err := os.RemoveAll(d.Path()); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Token(); err != nil || got != (Token{}) {
		t.Errorf("without the directory: %+v, %v", got, err)
	}
}

func TestTokenMode(t *testing.T) {
	for _, test := range []struct {
		mode, after os.FileMode
		says        string
	}{
		{0o600, 0o600, ""}, {0o400, 0o400, ""},
		{0o644, 0o600, "mode 0644, more than 0600: it has been repaired, the mode is 0600"},
		{0o660, 0o600, "0660"}, {0o606, 0o600, "0606"}, {0o700, 0o600, "0700"}, {0o444, 0o400, "the mode is 0400"},
	} {
		d := open(t)
		path := d.Path(tokenFile)
		put(t, path, secret, test.mode)
		got, err := d.Token()
		if err != nil || got.Text != secret {
			t.Errorf("mode %o: %+v, %v", test.mode, got, err)
		}
		if (got.Note == "") != (test.says == "") || !strings.Contains(got.Note, test.says) || strings.Contains(got.Note, secret) {
			t.Errorf("mode %o: note %q, want %q in it", test.mode, got.Note, test.says)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != test.after {
			t.Errorf("mode %o has become %o (%v), want %o", test.mode, fi.Mode().Perm(), err, test.after)
		}
		// Whoever reads it next may be the one who logs.
		if again, err := d.Token(); err != nil || again != got {
			t.Errorf("mode %o: the next one got %+v, %v", test.mode, again, err)
		}
		if err := d.WriteToken(secret); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Token(); err != nil || got != (Token{Text: secret}) {
			t.Errorf("mode %o: behind a change: %+v, %v", test.mode, got, err)
		}
	}
}

func TestTokenOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can give a file away")
	}
	d := open(t)
	path := d.Path(tokenFile)
	put(t, path, secret, 0o644)
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	got, err := d.Token()
	if err != nil || got.Text != secret || !strings.Contains(got.Note, "mode 0644") || !strings.Contains(got.Note, "user 65534") {
		t.Errorf("got %+v, %v", got, err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o644 {
		t.Errorf("the mode of another's file has become %o", fi.Mode().Perm())
	}

	// One that cannot be read: asked as nobody.
	if err := os.Chown(path, 0, 0); err != nil {
		t.Fatal(err)
	}
	for p := d.Path(); p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, path, secret, 0o600)
	cmd := self(t, "token", d.Path())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "denied|read token file "+path) || !strings.Contains(string(out), "as user 65534|make that user") {
		t.Errorf("got %s (%v)", out, err)
	}
}

// TestTokenIrregular puts in the token's place what is no file. A read that
// waits fails the test by never ending.
func TestTokenIrregular(t *testing.T) {
	for name, test := range map[string]struct {
		make func(path string) error
		says string
	}{
		"directory": {func(p string) error { return os.Mkdir(p, 0o700) }, "a directory"},
		"pipe":      {func(p string) error { return unix.Mkfifo(p, 0o600) }, "a named pipe"},
		"socket": {func(p string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			return err
		}, "a socket"},
		"link to a device":    {func(p string) error { return os.Symlink("/dev/zero", p) }, "a device"},
		"link to a directory": {func(p string) error { return os.Symlink("/", p) }, "a directory"},
		"link to itself":      {func(p string) error { return os.Symlink("token", p) }, "symbolic links"},
		"link behind a file":  {func(p string) error { return os.Symlink("/proc/self/exe/token", p) }, "not a directory"},
		"too long": {func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat(secret, wire.MaxToken)), 0o600)
		}, "longer"},
		"too long by space": {func(p string) error {
			return os.WriteFile(p, []byte(secret+strings.Repeat(" ", wire.MaxToken)), 0o600)
		}, "longer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir()) // the path of a socket is short
			d, err := Open("s")
			if err != nil {
				t.Fatal(err)
			}
			d.path = "s"
			if err := test.make(d.Path(tokenFile)); err != nil {
				t.Fatal(err)
			}
			got, err := d.Token()
			wantError(t, err, wire.BadUsage, "read token file s/token: ", test.says)
			if got != (Token{}) || strings.Contains(err.Error(), secret) {
				t.Errorf("got %+v with error %v", got, err)
			}
		})
	}
}

func TestTokenByLink(t *testing.T) {
	d := open(t)
	if err := os.Symlink("../secrets/now", d.Path(tokenFile)); err != nil {
		t.Fatal(err)
	}
	got, err := d.Token()
	if err != nil || got.Text != "" || !strings.Contains(got.Note, "../secrets/now, which does not exist") {
		t.Errorf("a link to nothing: %+v, %v", got, err)
	}
	secrets := filepath.Join(filepath.Dir(d.Path()), "secrets")
	if err := os.Mkdir(secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(secrets, "now"), secret, 0o640)
	got, err = d.Token()
	if err != nil || got.Text != secret || !strings.Contains(got.Note, "0640") {
		t.Errorf("a link to a file: %+v, %v", got, err)
	}
	if err := d.WriteToken("wprun_new"); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Token(); err != nil || got != (Token{Text: "wprun_new"}) {
		t.Errorf("written over the link: %+v, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(secrets, "now")); err != nil || string(b) != secret {
		t.Errorf("the link's target holds %q (%v)", b, err)
	}
}

func TestWriteToken(t *testing.T) {
	d := open(t)
	for _, text := range []string{secret, "wprun_other", strings.Repeat("x", wire.MaxToken-1)} {
		if err := d.WriteToken(text); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Token(); err != nil || got != (Token{Text: text}) {
			t.Errorf("got %+v, %v", got, err)
		}
	}
	for _, bad := range []string{"", " ", secret + "\n", "a b", "a\x00", strings.Repeat("x", wire.MaxToken)} {
		err := d.WriteToken(bad)
		if wire.KindOf(err) != wire.BadUsage || strings.Contains(err.Error(), secret) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	if got, err := d.Token(); err != nil || len(got.Text) != wire.MaxToken-1 {
		t.Errorf("a refused token has changed the file: %d bytes, %v", len(got.Text), err)
	}
	if err := os.Remove(d.Path(tokenFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.Path(tokenFile), 0o700); err != nil {
		t.Fatal(err)
	}
	wantError(t, d.WriteToken(secret), wire.BadUsage, "a directory")
}

func TestFlag(t *testing.T) {
	d := open(t)
	check := func(want bool) {
		t.Helper()
		for _, dir := range []*Dir{d, {path: d.path}} {
			if got, err := dir.Flag("draining"); got != want || err != nil {
				t.Errorf("got %v, %v, want %v", got, err, want)
			}
		}
	}
	check(false)
	for _, on := range []bool{true, true, false, false, true} {
		if err := d.SetFlag("draining", on); err != nil {
			t.Fatal(err)
		}
		check(on)
	}
	for _, bad := range []string{"", "token", "id", "version", "lock", "jobs", "identity.key", "../x", "a/b", "A", ".tmp-x"} {
		if err := d.SetFlag(bad, false); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("set %q: %v", bad, err)
		}
		if _, err := d.Flag(bad); wire.KindOf(err) != wire.BadUsage {
			t.Errorf("ask for %q: %v", bad, err)
		}
	}
}

// TestTokenFault: it says what Token would, and takes nothing from the watch.
func TestTokenFault(t *testing.T) {
	d := open(t)
	path := filepath.Join(d.Path(), "token")
	if err := d.TokenFault(); err != nil {
		t.Errorf("no file: %v", err)
	}
	put(t, path, secret, 0o644)
	if err := d.TokenFault(); err != nil {
		t.Errorf("mode 0644: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("the file has been touched: %v, %v", fi, err)
	}
	if d.token != nil {
		t.Error("the watch takes it for a look of its reader")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.TokenFault(); err == nil || !strings.Contains(err.Error(), "it is a directory") {
		t.Errorf("a directory: %v", err)
	}
}
