package daemon

import (
	"context"
	"crypto/ed25519"
	"slices"
	"sync"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/daemon/token"
	"github.com/waypointd/waypoint/mux/wire"
)

const (
	// keysFresh is how long keys that were read are believed where nothing is
	// heard of another server of the database that revokes one.
	keysFresh = 5 * time.Second
	// keysPause is between two readings of the keys because of tokens that
	// name an unknown one: a flood of garbage costs no more than that.
	keysPause = 200 * time.Millisecond
	// keysTimeout bounds one reading.
	keysTimeout = 10 * time.Second
)

// keyring is what this process knows of the keys that verify tokens. The store
// has them; other servers of its database change them as well.
type keyring struct {
	load func(ctx context.Context) ([]token.Key, error)
	lost func()        // called after a reading where a key has gone that verified: another server has revoked it
	turn chan struct{} // held by the one call that reads

	mu    sync.Mutex
	fresh time.Duration        // keysFresh; guarded by mu, as is what follows
	keys  map[[8]byte]verifier //
	read  time.Time            // when the reading began that found them; zero: to be read again
	tried time.Time            // when the last reading began
	edits int                  // changes that were heard of
}

// verifier is what is needed of a key to verify.
type verifier struct {
	public ed25519.PublicKey
	key    token.Key // without its secret
}

func newKeyring(load func(ctx context.Context) ([]token.Key, error), lost func()) *keyring {
	return &keyring{load: load, lost: lost, fresh: keysFresh, turn: make(chan struct{}, 1)}
}

// find returns the public key of an id, asking the store where it is unknown
// or has been believed for long. An unknown id is answered by a reading that
// began after the call, at the latest keysPause later. The error is the store's.
func (k *keyring) find(ctx context.Context, id [8]byte, now time.Time) (ed25519.PublicKey, bool, error) {
	came := time.Now()
	v, known, fresh := k.look(id)
	if !known || !fresh {
		if err := k.refresh(ctx, came); err != nil {
			return nil, false, err
		}
		v, known, _ = k.look(id)
	}
	if !known || !v.key.Verifies(now) {
		return nil, false, nil
	}
	return v.public, true, nil
}

func (k *keyring) look(id [8]byte) (v verifier, known, fresh bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, known = k.keys[id]
	return v, known, !k.read.IsZero() && time.Since(k.read) < k.fresh
}

// refresh reads the keys, unless somebody else has begun to since the caller came.
func (k *keyring) refresh(ctx context.Context, came time.Time) error {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		k.mu.Lock()
		read, pause := k.read, keysPause-time.Since(k.tried)
		k.mu.Unlock()
		if read.After(came) {
			return nil
		}
		if pause > 0 {
			timer := time.NewTimer(pause)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := k.reload(ctx); err != nil {
			return err
		}
	}
}

// reload reads the keys. What has been changed meanwhile makes it void. It does
// not end with the call that began it, for others wait for what it finds: a
// stranger who comes and goes must not keep them waiting.
func (k *keyring) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keysTimeout)
	defer cancel()
	began := time.Now()
	k.mu.Lock()
	k.tried = began
	edits := k.edits
	k.mu.Unlock()
	keys, err := k.load(ctx)
	if err != nil {
		return err
	}
	found := make(map[[8]byte]verifier, len(keys))
	for _, key := range keys {
		v := verifier{public: key.Public(), key: key}
		v.key.Private = nil
		found[key.ID] = v
	}
	gone := false
	k.mu.Lock()
	if k.edits == edits {
		for id, v := range k.keys {
			if _, ok := found[id]; !ok && v.key.Verifies(time.Now()) {
				gone = true
			}
		}
		k.keys, k.read = found, began
	}
	k.mu.Unlock()
	if gone {
		k.lost()
	}
	return nil
}

// has reports whether an id is known, without asking the store about it more
// often than it is asked anyway.
func (k *keyring) has(ctx context.Context, id [8]byte) bool {
	_ = k.renew(ctx) // else by what was known
	_, known, _ := k.look(id)
	return known
}

// renew reads the keys where they have been believed for long.
func (k *keyring) renew(ctx context.Context) error {
	came := time.Now()
	if _, _, fresh := k.look([8]byte{}); fresh {
		return nil
	}
	return k.refresh(ctx, came)
}

// stale makes the next call read the keys, at once: another server has changed
// them. Those that were known are kept to be compared with what it finds.
func (k *keyring) stale() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.read, k.tried = time.Time{}, time.Time{}
	k.edits++
}

// changed makes the next call read the keys, at once: this server has changed
// them.
func (k *keyring) changed() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys, k.read, k.tried = nil, time.Time{}, time.Time{}
	k.edits++
}

// checkLife reports whether a token may live so long.
func checkLife(life time.Duration) error {
	switch {
	case life <= 0:
		return wire.Errorf(wire.BadUsage, "a token that expires in %s would never be good", life).
			WithHint("name how long it is to be good for, such as 720h")
	case life < wire.MinTokenLife:
		return wire.Errorf(wire.BadUsage, "a token must be good for at least %s, not %s", wire.MinTokenLife, life)
	case life > wire.MaxTokenLife:
		return wire.Errorf(wire.BadUsage, "a token may be good for 10 years at most (%s), not %s", wire.MaxTokenLife, life)
	}
	return nil
}

// mint makes a token of claims that say whom it is for, within a transaction:
// it draws the serial and fills in Serial, Issued, Expiry and Pin. The first
// token of a store makes its first key. The token counts when the transaction
// has been committed; announce it then with minted.
func (s *Server) mint(tx *store.Tx, c wire.Claims, life time.Duration, now time.Time) (string, wire.Claims, error) {
	if err := checkLife(life); err != nil {
		return "", c, err
	}
	keys, err := tx.TokenKeys()
	if err != nil {
		return "", c, err
	}
	key, ok := signing(keys)
	if !ok {
		key = token.NewKey(now)
	}
	if c.Serial, err = tx.NextSerial(now); err != nil {
		return "", c, err
	}
	// The store keeps microseconds, and what was signed must not outlive Until.
	c.Issued = now.UTC().Truncate(time.Microsecond)
	c.Expiry = c.Issued.Add(life).Truncate(time.Microsecond)
	c.Pin = s.pin()
	text, err := token.Mint(key, c)
	if err != nil {
		return "", c, err
	}
	if c.Expiry.After(key.Until) {
		key.Until = c.Expiry
		if err := tx.PutTokenKey(key); err != nil {
			return "", c, err
		}
	}
	return text, c, nil
}

// minted leaves the trace of a token that has been made: never its text.
func (s *Server) minted(by string, c wire.Claims) {
	attrs := []any{"by", by, "serial", c.Serial, "expires_at", c.Expiry}
	switch c.Kind {
	case wire.UserToken:
		s.log.Info("user token made", append(attrs, "user", c.User)...)
		return
	case wire.InviteToken:
		s.log.Info("user invited", append(attrs, "user", c.User)...)
		return
	}
	runner := c.ID
	if runner == "" {
		runner = "any"
	}
	attrs = append(attrs, "runner", runner)
	if len(c.Labels) > 0 {
		attrs = append(attrs, "labels", c.Labels)
	}
	if c.Key != "" {
		attrs = append(attrs, "fingerprint", c.Key)
	}
	s.log.Info("runner token made", attrs...)
}

// verify is what a token says, proved, at now. Errors are token.Verify's (with
// Expired come the claims), or the store's.
func (s *Server) verify(ctx context.Context, text string, now time.Time) (wire.Claims, error) {
	var unread error
	c, err := token.Verify(text, func(id [8]byte) (ed25519.PublicKey, bool) {
		public, ok, err := s.keys.find(ctx, id, now)
		unread = err
		return public, ok
	}, now)
	if unread != nil {
		return wire.Claims{}, unread
	}
	return c, err
}

// signing is the key that signs.
func signing(keys []token.Key) (token.Key, bool) {
	for _, k := range keys {
		if k.Retired.IsZero() {
			return k, true
		}
	}
	return token.Key{}, false
}

// rotate makes a new signing key. Those before it verify until their last token
// has expired, or with revoke no more.
func rotate(tx *store.Tx, revoke bool, now time.Time) (made token.Key, retired []token.Key, err error) {
	keys, err := tx.TokenKeys()
	if err != nil {
		return made, nil, err
	}
	for _, k := range keys {
		if k.Retired.IsZero() {
			k.Retired = now
		}
		if revoke || !k.Verifies(now) {
			err = tx.DeleteTokenKey(k.ID)
		} else {
			retired = append(retired, k)
			err = tx.PutTokenKey(k)
		}
		if err != nil {
			return made, nil, err
		}
	}
	made = token.NewKey(now)
	return made, retired, tx.PutTokenKey(made)
}

// dropTokenKeys removes retired keys whose last token has expired.
func (s *Server) dropTokenKeys(ctx context.Context, now time.Time) error {
	verifies := func(k token.Key) bool { return k.Verifies(now) }
	keys, err := s.store.TokenKeys(ctx)
	if err != nil || !slices.ContainsFunc(keys, func(k token.Key) bool { return !verifies(k) }) {
		return err
	}
	return s.store.Update(ctx, func(tx *store.Tx) error {
		keys, err := tx.TokenKeys()
		if err != nil {
			return err
		}
		for _, k := range slices.DeleteFunc(keys, verifies) {
			if err := tx.DeleteTokenKey(k.ID); err != nil {
				return err
			}
		}
		return nil
	})
}
