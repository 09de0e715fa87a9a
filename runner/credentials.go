package runner

import (
	"slices"
	"sync"

	"github.com/waypointd/waypoint/mux/wire"
)

// credentials are what a runner knows of its tokens: those it has shown to the
// server, the one that the server uses, and what it was granted.
type credentials struct {
	stir chan struct{} // one token: a source may have changed, or a grant has come

	mu      sync.Mutex
	said    map[wire.TokenSource]string // what was logged as wrong with the sources; guarded by mu
	seen    []wire.TokenOffer           // what the sources held when they were looked at to show them; guarded by mu
	offered []wire.TokenOffer           // what was shown last; guarded by mu
	using   wire.TokenOffer             // what the server uses, or used last; guarded by mu
	owed    bool                        // they must be shown again, changed or not; guarded by mu
	grant   grant                       // guarded by mu
}

// grant is a token that the server has granted.
type grant struct {
	text    string // "" where there is none
	wanted  bool   // it is to be stored
	stored  bool   // it has been, by this agent
	confirm bool   // the server is to be told so
	failed  bool   // it could not be: it is used from memory
	before  string // what the file held when that was found
	outdone bool   // a token that was put into the file later goes before it
}

// compose is what there is to show: a grant that could not be stored in place
// of the file that it should be in, the sources, and last the token in use, so
// that a bad new one does not take its place. It is left out where its source
// has been emptied: whoever deletes a token wants it to be used no more.
func (c *credentials) compose(s sighting) []wire.TokenOffer {
	var list []wire.TokenOffer
	add := func(o wire.TokenOffer) {
		same := func(x wire.TokenOffer) bool { return x.Token == o.Token }
		if o.Token != "" && len(list) < wire.MaxOffers && !slices.ContainsFunc(list, same) {
			list = append(list, o)
		}
	}
	memory := wire.TokenOffer{Source: wire.SourceMemory, Token: c.grant.text}
	if c.grant.failed && !c.grant.outdone {
		add(memory)
	}
	for _, o := range s.offers {
		add(o)
	}
	if c.grant.outdone {
		add(memory)
	}
	if !s.absent[c.using.Source] {
		add(c.using)
	}
	return list
}

// show notes what is shown now, and returns it as it is sent.
func (c *credentials) show(s sighting) []wire.TokenOffer {
	c.seen, c.offered = s.offers, c.compose(s)
	sent := make([]wire.TokenOffer, 0, len(c.offered))
	for _, o := range c.offered {
		sent = append(sent, shown(o))
	}
	return sent
}

// hello is what the next session begins with. What a session before it was
// still to be told, it tells, or the server asks for it again.
func (c *credentials) hello(s sighting) []wire.TokenOffer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed, c.grant.confirm = false, false
	return c.show(s)
}

// fresh reports whether a source has a token that was not there before, once:
// what it is asked about has been seen.
func (c *credentials) fresh(s sighting) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news := c.news(s)
	c.seen = s.offers
	return news
}

// news reports whether a source has a token that was not there when they were
// looked at last to show them. That one is gone is no news: the session goes
// on. mu is held.
func (c *credentials) news(s sighting) bool {
	for _, o := range s.offers {
		if !slices.ContainsFunc(c.seen, func(x wire.TokenOffer) bool { return x.Token == o.Token }) {
			return true
		}
	}
	return false
}

// request is what the server is to be told over the living session, nil where
// that is nothing. It is owed until settled is called.
func (c *credentials) request(s sighting) *wire.AuthenticateRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.owed && !c.grant.confirm && !c.news(s) {
		return nil
	}
	c.owed = true
	return &wire.AuthenticateRequest{Offers: c.show(s), Stored: c.grant.confirm}
}

// owe has the tokens shown again, if there are any.
func (c *credentials) owe() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed = c.owed || len(c.offered) > 0
	return c.owed
}

// settled says that the server has answered, whatever the answer.
func (c *credentials) settled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed, c.grant.confirm = false, false
}

// judged notes which of the tokens shown the server uses. A source may have
// been shown with two: with what it holds now, and with the one in use that
// it held before. Their claims tell them apart.
func (c *credentials) judged(st wire.Standing) {
	if st.Source == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	found := false
	for _, o := range c.offered {
		if o.Source != st.Source {
			continue
		}
		claims, err := wire.ReadToken(o.Token)
		exact := err == nil && claims.Expiry.Equal(st.Expiry) && claims.Issued.Equal(st.Issued)
		if exact || !found {
			c.using, found = o, true
		}
		if exact {
			return
		}
	}
}

// granted takes a grant, also the same one again.
func (c *credentials) granted(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.grant.text != text {
		c.grant = grant{text: text}
	}
	c.grant.wanted = true
}

// toStore is the grant that is to be written to the token file, which holds
// file now; "" where there is none. A token that was put there after it is
// left in its place.
func (c *credentials) toStore(file string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := &c.grant
	switch {
	case !g.wanted:
		return ""
	case g.stored && file != "":
		g.wanted, g.confirm = false, true
		g.outdone = file != g.text
		return ""
	case g.failed && file != "" && file != g.before && file != g.text:
		g.wanted, g.outdone = false, true
		return ""
	}
	return g.text
}

// placed says how the storing of a grant went. True means that it is news
// for the server: that it is stored, or used from memory.
func (c *credentials) placed(text, before string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := &c.grant
	if g.text != text { // another has come meanwhile
		return
	}
	if err == nil {
		*g = grant{text: text, stored: true, confirm: true}
		return
	}
	if !g.failed {
		g.failed, g.before, c.owed = true, before, true
	}
}

// unstored reports whether a grant is still to be stored.
func (c *credentials) unstored() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.grant.wanted
}
