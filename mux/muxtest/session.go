package muxtest

import (
	"context"
	"crypto/ed25519"
	"testing"

	"github.com/waypointd/waypoint/mux"
	"github.com/waypointd/waypoint/mux/wire"
)

// Pair is both ends of one session.
type Pair struct {
	Link   *Link
	Client *mux.Session
	Server *mux.Session
}

// Options say how a Pair is made; the zero value is a client's session.
type Options struct {
	Client, Server mux.Config
	Hello          wire.Hello // RoleClient where it names no role
	Key            ed25519.PrivateKey
	Back           mux.Table // served by the client
	Admit          mux.Admit // in place of one that admits everybody to the table
}

// NewPair connects a client with a server that serves table. The sessions are
// closed when the test ends.
func NewPair(t testing.TB, table mux.Table, o Options) *Pair {
	t.Helper()
	p, err := Connect(t.Context(), NewLink(), table, o)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(p.Close)
	return p
}

// Connect makes a session over link; on error both ends have been closed.
func Connect(ctx context.Context, link *Link, table mux.Table, o Options) (*Pair, error) {
	if o.Hello.Role == "" {
		o.Hello.Role = wire.RoleClient
	}
	if o.Admit == nil {
		o.Admit = AdmitAll(table)
	}
	type accepted struct {
		s   *mux.Session
		err error
	}
	server := make(chan accepted, 1)
	go func() {
		s, err := mux.Accept(ctx, link.B, o.Server, o.Admit)
		server <- accepted{s, err}
	}()
	client, err := mux.Connect(ctx, link.A, o.Client, o.Hello, o.Key, o.Back)
	a := <-server
	if err == nil && a.err != nil {
		client.Close()
		return nil, a.err
	}
	if err != nil {
		if a.s != nil {
			a.s.Close()
		}
		return nil, err
	}
	return &Pair{Link: link, Client: client, Server: a.s}, nil
}

// Close closes both ends.
func (p *Pair) Close() {
	p.Client.Close()
	p.Server.Close()
}

// AdmitAll admits everybody to table.
func AdmitAll(table mux.Table) mux.Admit {
	return func(context.Context, *mux.Peer) (*mux.Admission, error) {
		return &mux.Admission{Welcome: wire.Welcome{ServerID: "muxtest"}, Table: table}, nil
	}
}
