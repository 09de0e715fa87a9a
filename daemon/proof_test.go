package daemon

import (
	"fmt"
	"io"
	"strings"
	"testing"

	dialer "github.com/waypointd/waypoint/mux/client"
	"github.com/waypointd/waypoint/mux/wire"
)

// endless is a text without an end.
type endless struct {
	start io.Reader
	more  byte
	read  int
}

func (e *endless) Read(p []byte) (int, error) {
	n, _ := e.start.Read(p)
	for i := n; i < len(p); i++ {
		p[i] = e.more
	}
	e.read += len(p)
	return len(p), nil
}

// A source tree that is one value of any length takes no more of the server's
// memory than one of many.
func TestSourceOfOneValue(t *testing.T) {
	for _, start := range []string{
		`"`, `{"`, `{"version":"`, `{"entries":[{"path":"`, `{"entries":[{"digest":"a"},{"path":"`, `{"entries":["`, `{"entries":[[`, `{"entries":[1`, ` `,
	} {
		more := byte('x')
		if c := start[len(start)-1]; c != '"' {
			more = c
		}
		text := &endless{start: strings.NewReader(start), more: more}
		err := eachDigest(text, func(string) error { return nil })
		if err == nil || text.read > 4*maxEntry {
			t.Errorf("%s: %d bytes were read, %v", start, text.read, err)
		}
	}
	var digests []string
	long := strings.Repeat(`\u0001`, 4095)
	text := `{"version":1,"entries":[` + strings.Repeat(fmt.Sprintf(`{"path":"%s","target":"%[1]s","digest":"d"},`, long), 20) + `{"path":"x"}]}`
	if err := eachDigest(strings.NewReader(text), func(d string) error { digests = append(digests, d); return nil }); err != nil || len(digests) != 20 {
		t.Errorf("%d digests of a tree with long names, %v", len(digests), err)
	}

	s := newSite(t, Config{})
	limited := s.as(t, s.account(t, "olga", wire.Operator, wire.Limits{Projects: []string{"shop"}}))
	tree := blob(`{"version":1,"entries":[{"path":"` + strings.Repeat("x", 4<<20) + `"}]}`)
	if err := limited.PutBlobs(t.Context(), []dialer.Blob{tree}); err != nil {
		t.Fatal(err)
	}
	spec := jobOf("shop", "")
	spec.Source = &wire.Source{Tree: tree.Digest}
	_, err := limited.Submit(t.Context(), spec)
	is(t, err, wire.BadUsage, "read source tree: a part of it is longer than 65536 bytes", "")
}
