package runner

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/statedir"
)

// Tokens are where a runner's tokens come from. Its zero value has none.
type Tokens struct {
	Dir            *statedir.Dir // its file "token"; nil: no such file
	Environment    string        // the token itself
	CredentialFile string        // of the service manager's; one that is absent is fine
}

// The length up to which a text is shown to the server as it is. A real token
// is far shorter; what is none is cut, so that a hello keeps to its limit and a
// misplaced secret to this host.
const (
	maxShown    = 8 << 10
	maxNotToken = 256
)

// Read looks at the sources and returns what they hold, the first of each
// text. What is wrong with one is logged (nil discards), and the next one asked.
func (t Tokens) Read(log *slog.Logger) []wire.TokenOffer {
	s := t.look()
	s.say(cmp.Or(log, slog.New(slog.DiscardHandler)), nil)
	return s.offers
}

// sighting is what the sources held at one moment.
type sighting struct {
	offers []wire.TokenOffer           // the first of each text, in the sources' order
	absent map[wire.TokenSource]bool   // sources that were looked at and hold nothing
	notes  map[wire.TokenSource]string // what is wrong with a source, or was
	failed map[wire.TokenSource]error  // those that cannot be used, which have no note
}

func (t Tokens) look() sighting {
	s := sighting{
		absent: map[wire.TokenSource]bool{}, notes: map[wire.TokenSource]string{}, failed: map[wire.TokenSource]error{},
	}
	s.add(wire.SourceFile, t.readFile)
	s.add(wire.SourceEnvironment, func() (statedir.Token, error) { return checkText(t.Environment, "environment") })
	s.add(wire.SourceCredential, t.readCredential)
	return s
}

func (s *sighting) add(source wire.TokenSource, read func() (statedir.Token, error)) {
	tok, err := read()
	switch {
	case err != nil:
		s.failed[source] = err
	case tok.Text == "":
		s.absent[source] = true
	case !slices.ContainsFunc(s.offers, func(o wire.TokenOffer) bool { return o.Token == tok.Text }):
		s.offers = append(s.offers, wire.TokenOffer{Source: source, Token: tok.Text})
	}
	if tok.Note != "" {
		s.notes[source] = tok.Note
	}
}

// text is what a source holds, "" where that is nothing or was seen before it.
func (s *sighting) text(source wire.TokenSource) string {
	for _, o := range s.offers {
		if o.Source == source {
			return o.Token
		}
	}
	return ""
}

// say logs what is wrong with the sources, but for what said has already, and
// returns what said is from now on.
func (s *sighting) say(log *slog.Logger, said map[wire.TokenSource]string) map[wire.TokenSource]string {
	now := map[wire.TokenSource]string{}
	for source, err := range s.failed {
		if now[source] = err.Error(); said[source] != now[source] {
			log.Error("token cannot be read", because(err, "source", source)...)
		}
	}
	for source, note := range s.notes {
		if now[source] = note; said[source] != note {
			log.Warn("token has been found in disorder", "source", source, "what", note)
		}
	}
	return now
}

// file names the token file, for people.
func (t Tokens) file() string {
	if t.Dir == nil {
		return "its token file"
	}
	return t.Dir.Path("token")
}

func (t Tokens) readFile() (statedir.Token, error) {
	if t.Dir == nil {
		return statedir.Token{}, nil
	}
	return t.Dir.Token()
}

// readCredential reads the credential as a token file is read, but for its
// mode: the service manager made it.
func (t Tokens) readCredential() (statedir.Token, error) {
	if t.CredentialFile == "" {
		return statedir.Token{}, nil
	}
	f, err := os.OpenFile(t.CredentialFile, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would be waited for
	if errors.Is(err, fs.ErrNotExist) {
		return statedir.Token{}, nil
	}
	if err != nil {
		return statedir.Token{}, fmt.Errorf("read credential: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		return statedir.Token{}, wire.Errorf(wire.BadUsage, "read credential %s: it is no regular file", t.CredentialFile)
	}
	var body []byte
	if err == nil {
		body, err = io.ReadAll(io.LimitReader(f, wire.MaxToken+1))
	}
	if err != nil {
		return statedir.Token{}, fmt.Errorf("read credential: %w", err)
	}
	return checkText(string(body), "credential "+t.CredentialFile)
}

// checkText trims a token's text; what is longer than any token is an error.
func checkText(text, from string) (statedir.Token, error) {
	text = strings.TrimSpace(text)
	if len(text) > wire.MaxToken {
		return statedir.Token{}, wire.Errorf(wire.BadUsage, "read token of %s: it is longer than any token", from)
	}
	return statedir.Token{Text: text}, nil
}

// shown is an offer as it is sent.
func shown(o wire.TokenOffer) wire.TokenOffer {
	limit := maxShown
	if _, err := wire.SplitToken(o.Token); err != nil {
		limit = maxNotToken
	}
	if len(o.Token) > limit {
		o.Token = o.Token[:limit]
	}
	o.Token = strings.ToValidUTF8(o.Token, "?")
	return o
}

// because is what a log says of an error: what goes before it, the error, and
// what to do about it where it says that.
func because(err error, attrs ...any) []any {
	attrs = append(attrs, "error", err)
	if e, ok := errors.AsType[*wire.Error](err); ok && e.Hint != "" {
		attrs = append(attrs, "hint", e.Hint)
	}
	return attrs
}
