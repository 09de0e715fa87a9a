package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/waypointd/waypoint/cmd/internal/contexts"
	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// tokenVariable is the environment's twin of --token. No job ever sees it.
const tokenVariable = "WAYPOINT_SERVER_TOKEN"

// secrets are what is in this process's environment for itself alone: a
// token, and where the service manager has put tokens.
var secrets = []string{tokenVariable, "CREDENTIALS_DIRECTORY"}

// givenToken is the token that was given with the command, and by what: a
// flag, else the environment. It is looked at no further. text is "" where
// none was given. A file that is named and empty is an error.
func (a *app) givenToken() (text, from string, err error) {
	switch {
	case a.Token != "" && a.TokenFile != "":
		return "", "", wire.Errorf(wire.BadUsage, "parse arguments: --token and --token-file exclude each other")
	case a.Token != "":
		return strings.TrimSpace(a.Token), "--token", nil
	case a.TokenFile != "":
		text, err = a.readToken(a.TokenFile)
		return text, "--token-file", err
	}
	return strings.TrimSpace(a.env.get(tokenVariable)), tokenVariable, nil
}

// readToken reads a token from a file, "-" being standard input. It is read
// once: a second call returns what the first one found.
func (a *app) readToken(path string) (string, error) {
	if a.tokenRead != "" {
		return a.tokenRead, nil
	}
	var text strings.Builder
	err := error(nil)
	if path == "-" {
		if output.IsTerminal(a.stdin) {
			return a.askToken("Token: ")
		}
		_, err = a.readAll(limited{&text})
	} else {
		err = a.copyToken(&text, path)
	}
	if we, ok := errors.AsType[*wire.Error](err); ok {
		return "", we
	}
	if err != nil {
		return "", wire.Errorf(wire.BadUsage, "read token: %v", err)
	}
	a.tokenRead = strings.TrimSpace(text.String())
	if a.tokenRead == "" {
		return "", wire.Errorf(wire.Unauthenticated, "read token: %s is empty", fileName(path)).
			WithHint("the file holds the token and nothing else")
	}
	return a.tokenRead, nil
}

func (a *app) copyToken(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Mode()&0o044 != 0 {
		a.note("others can read the token in %s (mode %04o)", path, info.Mode().Perm())
		a.hint("chmod 600 %s", path)
	}
	_, err = io.Copy(limited{w}, f)
	return err
}

func fileName(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// limited is a writer that takes no more than a token can have.
type limited struct{ w io.Writer }

func (l limited) Write(b []byte) (int, error) {
	if s, ok := l.w.(*strings.Builder); ok && s.Len()+len(b) > 2*wire.MaxToken {
		return 0, wire.Errorf(wire.Unauthenticated, "read token: what is there is far too long for one").
			WithHint("the file holds the token and nothing else")
	}
	return l.w.Write(b)
}

// askToken asks at the terminal, which does not show what is typed.
func (a *app) askToken(prompt string) (string, error) {
	in, ok := a.stdin.(*os.File)
	if !ok {
		return "", wire.Errorf(wire.Internal, "read token: standard input is no terminal")
	}
	restore, err := silence(int(in.Fd()))
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	fmt.Fprint(a.stderr, prompt)
	type line struct {
		text []byte
		err  error
	}
	typed := make(chan line, 1)
	go func() {
		// After a signal it is left behind; the process ends soon after.
		text, err := term.ReadPassword(int(in.Fd()))
		typed <- line{text, err}
	}()
	select {
	case l := <-typed:
		l.err = errors.Join(l.err, restore())
		fmt.Fprintln(a.stderr)
		if l.err != nil && !errors.Is(l.err, io.EOF) {
			return "", fmt.Errorf("read token: %w", l.err)
		}
		a.tokenRead = strings.TrimSpace(string(l.text))
	case <-a.ctx.Done():
		err := restore()
		fmt.Fprintln(a.stderr)
		return "", errors.Join(context.Cause(a.ctx), err)
	}
	if a.tokenRead == "" {
		return "", wire.Errorf(wire.Unauthenticated, "read token: nothing was typed")
	}
	return a.tokenRead, nil
}

// silence has a terminal show nothing of what is typed, from before the
// question on: who pastes is quick.
func silence(fd int) (restore func() error, err error) {
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	return func() error { return unix.IoctlSetTermios(fd, unix.TCSETS, before) }, unix.IoctlSetTermios(fd, unix.TCSETS, &silent)
}

// checkToken reads what a token says of itself and refuses one that cannot be
// a token, before anybody is asked about it; from says where it is from. The
// text is never shown.
func checkToken(text, from string) (wire.Claims, error) {
	c, err := wire.ReadToken(text)
	if err == nil {
		return c, nil
	}
	e := wire.Errorf(wire.Unauthenticated, "read %s: %v", from, err)
	if we, ok := errors.AsType[*wire.Error](err); ok && we.Hint != "" {
		return c, e.WithHint("%s", we.Hint)
	}
	return c, e.WithHint("make a new token: waypoint user token")
}

// trust is how the server's certificate is judged: by the flags and the
// environment, else by what is known of the server. Pins beyond these are
// those of the tokens that are shown to it.
func (a *app) trust(known contexts.Context, pins ...string) (mux.Trust, error) {
	t := mux.Trust{CAFile: known.TLSCA, SkipVerify: known.TLSSkipVerify}
	switch {
	case a.ServerTLS != nil:
		t.Plain = !*a.ServerTLS
	case known.TLS != nil:
		t.Plain = !*known.TLS
	}
	if a.ServerTLSSkipVerify != nil {
		t.SkipVerify = *a.ServerTLSSkipVerify
	}
	override(&t.CAFile, a.ServerTLSCA)
	fingerprint := known.TLSFingerprint
	override(&fingerprint, a.ServerTLSFingerprint)
	for _, pin := range append([]string{fingerprint}, pins...) {
		if pin == "" {
			continue
		}
		if !isFingerprint(pin) {
			return t, wire.Errorf(wire.BadUsage, "read fingerprint: %q is none of a certificate", pin).
				WithHint("it begins with SHA256: and is what `waypoint server status` on the server shows")
		}
		t.Pins = append(t.Pins, pin)
	}
	return t, nil
}

func isFingerprint(s string) bool {
	text, ok := strings.CutPrefix(s, "SHA256:")
	sum, err := base64.RawStdEncoding.Strict().DecodeString(text)
	return ok && err == nil && len(sum) == 32
}

// warn says what is dangerous about a connection, each time it is made by a
// command.
func (a *app) warn(addr mux.Address, t mux.Trust) {
	switch {
	case addr.Network != "tcp":
	case t.Plain:
		a.note("warning: the connection to %s is not encrypted", addr)
	case t.SkipVerify:
		a.note("warning: the certificate of %s is not verified: whoever answers there can read the token and change the answers", addr)
	}
}
