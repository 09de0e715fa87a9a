package contexts

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// secret has the form of a token; that it is none does not matter here.
var secret = wire.TokenParts{Kind: wire.UserToken, Claims: []byte(`{"user":"me"}`)}.String()

func full() Context {
	no := false
	return Context{
		ServerAddr: "tcp://example.org:9701", TLS: &no, TLSCA: "/ca.pem", TLSFingerprint: "SHA256:x",
		TLSSkipVerify: true, Token: secret, Workspace: "w",
	}
}

func TestSetAndLoad(t *testing.T) {
	s := New(t.TempDir())
	for name, c := range map[string]Context{"full": full(), "least": {ServerAddr: "unix:///s"}} {
		if err := s.Set(name, c); err != nil {
			t.Fatal(err)
		}
		got, note, err := s.Load(name)
		if err != nil || note != "" || !reflect.DeepEqual(got, c) {
			t.Errorf("Load(%s) = %+v, %q, %v; want %+v", name, got, note, err, c)
		}
	}
	if err := s.Create("full", Context{ServerAddr: "unix:///other"}); wire.KindOf(err) != wire.Conflict {
		t.Errorf("Create of one that is there: %v, want a conflict", err)
	}
	if err := s.Set("full", Context{ServerAddr: "unix:///other"}); err != nil {
		t.Fatal(err)
	}
	if c, _, err := s.Load("full"); err != nil || c.ServerAddr != "unix:///other" || c.Token != "" {
		t.Errorf("Load after Set = %+v, %v", c, err)
	}
	if names, err := s.Names(); err != nil || !slices.Equal(names, []string{"full", "least"}) {
		t.Errorf("Names = %v, %v", names, err)
	}
}

// TestModes: whatever the umask is, nobody else can read what is written, nor
// can they while it is being written, and nothing is left beside it.
func TestModes(t *testing.T) {
	home := t.TempDir()
	s := New(home)
	defer syscall.Umask(syscall.Umask(0))
	if err := s.Set("a", full()); err != nil {
		t.Fatal(err)
	}
	if err := s.SetDefault("a"); err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{
		"waypoint": 0o700, "waypoint/contexts": 0o700, "waypoint/contexts/a.toml": 0o600, "waypoint/default-context": 0o600,
	}
	err := filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == home {
			return err
		}
		rel, _ := filepath.Rel(home, path)
		info, err := d.Info()
		if err == nil && info.Mode().Perm() != want[rel] {
			t.Errorf("%s has mode %04o, want %04o", rel, info.Mode().Perm(), want[rel])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDefault looks at the default after each step that could move it.
func TestDefault(t *testing.T) {
	s := New(t.TempDir())
	if name, err := s.Default(); err != nil || name != "" {
		t.Errorf("Default = %q, %v before there is one", name, err)
	}
	if err := s.SetDefault("a"); wire.KindOf(err) != wire.NotFound {
		t.Errorf("SetDefault of none: %v", err)
	}
	is := func(after, want string, err error) {
		t.Helper()
		got, derr := s.Default()
		if err != nil || derr != nil || got != want {
			t.Errorf("after %s (%v): Default = %q, %v; want %q", after, err, got, derr, want)
		}
	}
	for _, name := range []string{"a", "b"} {
		if err := s.Set(name, full()); err != nil {
			t.Fatal(err)
		}
	}
	is("use", "a", s.SetDefault("a"))
	is("rename", "c", s.Rename("a", "c"))
	is("rename of another", "c", s.Rename("b", "d"))
	is("rename to itself", "c", s.Rename("c", "c"))
	is("deletion of another", "c", s.Delete("d"))
	is("deletion", "", s.Delete("c"))
	is("deletion of none", "", s.Delete("c"))
	if names, err := s.Names(); err != nil || len(names) != 0 {
		t.Errorf("Names = %v, %v", names, err)
	}
}

func TestRename(t *testing.T) {
	s := New(t.TempDir())
	if err := s.Rename("a", "b"); wire.KindOf(err) != wire.NotFound {
		t.Errorf("Rename of none: %v", err)
	}
	for _, name := range []string{"a", "b"} {
		if err := s.Set(name, Context{ServerAddr: "unix:///" + name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Rename("a", "b"); wire.KindOf(err) != wire.Conflict {
		t.Errorf("Rename to one that is there: %v", err)
	}
	if c, _, err := s.Load("b"); err != nil || c.ServerAddr != "unix:///b" {
		t.Errorf("what was there is now %+v, %v", c, err)
	}
}

func TestNames(t *testing.T) {
	s := New(t.TempDir())
	for _, name := range []string{"", ".", "..", "../a", "a/b", ".hidden", "-a", "a b", strings.Repeat("a", 64), "ä"} {
		_, _, lerr := s.Load(name)
		for what, err := range map[string]error{
			"Set": s.Set(name, full()), "Create": s.Create(name, full()), "Load": lerr, "SetDefault": s.SetDefault(name),
			"Rename from": s.Rename(name, "a"), "Rename to": s.Rename("a", name), "Delete": s.Delete(name),
		} {
			if wire.KindOf(err) != wire.BadUsage {
				t.Errorf("%s(%q): %v, want wrong usage", what, name, err)
			}
		}
	}
	if _, _, err := s.Load("none"); wire.KindOf(err) != wire.NotFound {
		t.Errorf("Load of none: %v", err)
	}
}

// TestGuard: what is wrong with the place of a file decides before its content.
func TestGuard(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(s *Store) error
		kind wire.Kind // "" is repaired
		says string
	}{
		{"others read", func(s *Store) error { return os.Chmod(s.Path("a"), 0o644) }, "", "mode 0644"},
		{"the group reads", func(s *Store) error { return os.Chmod(s.Path("a"), 0o640) }, "", "mode 0640"},
		{"the group writes", func(s *Store) error { return os.Chmod(s.Path("a"), 0o620) }, wire.Denied, "mode 0620"},
		{"others write", func(s *Store) error { return os.Chmod(s.Path("a"), 0o602) }, wire.Denied, "mode 0602"},
		{"others write in the directory", func(s *Store) error { return os.Chmod(s.folder(), 0o722) }, wire.Denied, "mode 0722"},
		{"a link", func(s *Store) error {
			return errors.Join(os.Rename(s.Path("a"), s.Path("b")), os.Symlink("b.toml", s.Path("a")))
		}, wire.Denied, "symbolic link"},
		{"a directory", func(s *Store) error { return errors.Join(os.Remove(s.Path("a")), os.Mkdir(s.Path("a"), 0o700)) }, wire.BadUsage, "is no file"},
		{"a pipe", func(s *Store) error {
			return errors.Join(os.Remove(s.Path("a")), syscall.Mkfifo(s.Path("a"), 0o600))
		}, wire.BadUsage, "is no file"},
		{"long", func(s *Store) error { return os.WriteFile(s.Path("a"), make([]byte, maxFile+1), 0o600) }, wire.BadUsage, "over 65536 bytes"},
		{"unknown key", func(s *Store) error { return os.WriteFile(s.Path("a"), []byte("server_adr = \"x\"\n"), 0o600) }, wire.BadUsage, "unknown key"},
		{"no address", func(s *Store) error { return os.WriteFile(s.Path("a"), nil, 0o600) }, wire.BadUsage, "no server_addr"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(t.TempDir())
			if err := s.Set("a", full()); err != nil {
				t.Fatal(err)
			}
			if err := c.harm(s); err != nil {
				t.Fatal(err)
			}
			got, note, err := s.Load("a")
			if wire.KindOf(err) != c.kind {
				t.Fatalf("Load: %v, want kind %q", err, c.kind)
			}
			text := note
			if err != nil {
				text = err.Error()
			}
			if !strings.Contains(text, c.says) {
				t.Errorf("Load says %q, want %q", text, c.says)
			}
			if c.kind != "" {
				if !reflect.DeepEqual(got, Context{}) {
					t.Errorf("refused, and yet it gave %+v", got)
				}
				return
			}
			if info, err := os.Stat(s.Path("a")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("not repaired: %v, %v", info.Mode(), err)
			}
			if got, note, err := s.Load("a"); err != nil || note != "" || !reflect.DeepEqual(got, full()) {
				t.Errorf("Load once it is repaired = %+v, %q, %v", got, note, err)
			}
		})
	}
}

// TestForeign: another user's file that others can read cannot be repaired.
func TestForeign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	s := New(t.TempDir())
	if err := s.Set("a", full()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(s.Path("a"), 12345, 12345), os.Chmod(s.Path("a"), 0o644)); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Load("a")
	if wire.KindOf(err) != wire.Denied || !strings.Contains(err.Error(), "user 12345") {
		t.Errorf("Load: %v", err)
	}
}

// TestErrorsHideTokens: a parser quotes what it cannot read.
func TestErrorsHideTokens(t *testing.T) {
	for name, text := range map[string]string{
		"alone":           secret,
		"with line":       secret + "\n",
		"no quotes":       "server_addr = \"x\"\ntoken = " + secret + "\n",
		"key":             secret + " = 1\n",
		"in another type": "tls = \"" + secret + "\"\n",
		"one quote":       "token = \"" + secret + "\nserver_addr = \"x\"",
		"twice":           "token = \"x\"\n" + secret + " = 1\n" + secret + " = 1\n",
		"table":           "[" + secret + "]\n",
	} {
		s := New(t.TempDir())
		if err := s.Set("a", full()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.Path("a"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := s.Load("a")
		if wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v, want wrong usage", name, err)
			continue
		}
		e, _ := errors.AsType[*wire.Error](err)
		if strings.Contains(e.Message+e.Hint, secret[6:20]) {
			t.Errorf("%s: the token is in %q, hint %q", name, e.Message, e.Hint)
		}
	}
}

// TestKilledWriters: what they leave is no context, and goes in time.
func TestKilledWriters(t *testing.T) {
	s := New(t.TempDir())
	if err := s.Set("a", full()); err != nil {
		t.Fatal(err)
	}
	old, young := filepath.Join(s.folder(), tempPrefix+"1"), filepath.Join(s.folder(), tempPrefix+"2")
	for _, path := range []string{old, young} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(old, then, then); err != nil {
		t.Fatal(err)
	}
	if err := s.Set("b", full()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old one is still there: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the one that is being written is gone: %v", err)
	}
	if names, err := s.Names(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("Names = %v, %v", names, err)
	}
}

// TestTogether: writers and readers of one context at once see whole ones.
func TestTogether(t *testing.T) {
	s := New(t.TempDir())
	one, two := full(), Context{ServerAddr: "unix:///s", Token: strings.Repeat("x", 8000)}
	if err := s.Set("a", one); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, c := range []Context{one, two} {
		all.Go(func() {
			for range 30 {
				if err := s.Set("a", c); err != nil {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			for range 200 {
				got, _, err := s.Load("a")
				if err != nil || !reflect.DeepEqual(got, one) && !reflect.DeepEqual(got, two) {
					t.Errorf("Load = %+v, %v", got, err)
				}
			}
		})
	}
	all.Wait()
}
