package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Notice is what a transaction of another server has changed.
type Notice struct {
	From string   `json:"s"`
	All  bool     `json:"a,omitempty"` // more than can be named, or than is known
	Jobs []string `json:"j,omitempty"` // whose record changed
	Logs []string `json:"l,omitempty"` // whose output grew
	News []string `json:"n,omitempty"`
}

// What a notice may have news of.
const (
	NewsReady     = "ready"     // there are jobs that a runner could have
	NewsDecisions = "decisions" // about runners
	NewsServers   = "servers"   // which servers there are, and who is connected where
	NewsUsers     = "users"     // what users may, and which of their tokens are good
	NewsKeys      = "keys"      // with which tokens are verified
)

// urgent is announced even where no other server is known: one that has only
// just begun believes what it has read before it is.
var urgent = []string{NewsServers, NewsUsers, NewsKeys}

// Has reports whether a notice may mean something.
func (n Notice) Has(what string) bool { return n.All || slices.Contains(n.News, what) }

// Announce has the other servers told, with the transaction's commit, that
// there is something new.
func (tx *Tx) Announce(what string) { tx.news.add(what) }

// Announce says whether there are other servers that want to be told.
func (s *Store) Announce(on bool) { s.announce.Store(on) }

const (
	maxNotice  = 7900 // bytes; PostgreSQL takes less than 8000
	sendNotice = `SELECT pg_notify('` + channel + `', $1)`
	anyReady   = `SELECT COUNT(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' AND blocked = '' LIMIT 1) r`
)

// notify tells the other servers, with the commit that follows, what it
// changes.
func (c *committer) notify(n Notice, ready bool) (verdict, error) {
	if c.s.instance == "" || !c.s.announce.Load() && !slices.ContainsFunc(urgent, n.Has) {
		return callersOwn, nil
	}
	tx := &Tx{s: c.s, c: c.c}
	failed := func(err error) (verdict, error) {
		v := c.s.engine.judge(err)
		if v == callersOwn {
			v = busy // the transaction is lost, and nobody's fault
		}
		return v, fmt.Errorf("tell other servers: %w", err)
	}
	if ready {
		var some int
		if err := one(tx, anyReady, nil, &some); err != nil {
			return failed(err)
		}
		if some > 0 {
			n.News = append(n.News, NewsReady)
		}
	}
	if len(n.Jobs) == 0 && len(n.Logs) == 0 && len(n.News) == 0 {
		return callersOwn, nil
	}
	n.From = c.s.instance
	text, err := json.Marshal(n)
	if err == nil && len(text) > maxNotice {
		text, err = json.Marshal(Notice{From: n.From, All: true})
	}
	if err != nil {
		return failed(err)
	}
	if _, err := tx.exec(sendNotice, string(text)); err != nil {
		return failed(err)
	}
	return callersOwn, nil
}

// How long a listener that has lost the database waits before it tries again,
// doubled each time.
const (
	firstListen   = 100 * time.Millisecond
	longestListen = 5 * time.Second
)

// Listen calls f for what other servers change, until ctx ends. Each time it
// has begun to hear, f is told All: nobody knows what was missed. It may not
// block for long. lost, if set, is told why nothing is heard.
func (s *Store) Listen(ctx context.Context, f func(Notice), lost func(error)) {
	delay := firstListen
	for {
		err := s.engine.listen(ctx, func() {
			delay = firstListen
			f(Notice{All: true})
		}, func(text string) {
			var n Notice
			if json.Unmarshal([]byte(text), &n) != nil {
				n = Notice{All: true} // of another release
			}
			if n.From != s.instance {
				f(n)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("the database has ended it")
		}
		lost(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, longestListen)
	}
}
