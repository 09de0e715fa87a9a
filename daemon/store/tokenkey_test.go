package store

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store/storetest"
	"github.com/waypointd/waypoint/daemon/token"
)

func TestTokenKeys(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.Date(2030, 1, 2, 3, 4, 5, 678000, time.UTC)
		a, b := token.NewKey(at), token.NewKey(at.Add(time.Hour))
		read := func() []token.Key {
			t.Helper()
			keys, err := s.TokenKeys(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return keys
		}
		if keys := read(); len(keys) != 0 {
			t.Fatalf("a fresh store has %d keys", len(keys))
		}
		update(t, s, func(tx *Tx) error { return errors.Join(tx.PutTokenKey(b), tx.PutTokenKey(a)) })
		if keys := read(); !reflect.DeepEqual(keys, []token.Key{a, b}) {
			t.Fatalf("got %+v", keys)
		}
		a.Retired, a.Until = at.Add(time.Hour), at.Add(2*time.Hour)
		update(t, s, func(tx *Tx) error {
			if err := tx.PutTokenKey(a); err != nil {
				return err
			}
			keys, err := tx.TokenKeys()
			if !reflect.DeepEqual(keys, []token.Key{a, b}) {
				t.Errorf("within the transaction: %+v", keys)
			}
			return err
		})
		update(t, s, func(tx *Tx) error { return errors.Join(tx.DeleteTokenKey(b.ID), tx.DeleteTokenKey([8]byte{})) })
		if keys := read(); !reflect.DeepEqual(keys, []token.Key{a}) {
			t.Fatalf("got %+v", keys)
		}
	})
}

func TestSpoiltTokenKeyIsNotUsed(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		k := token.NewKey(time.Now())
		update(t, s, func(tx *Tx) error { return tx.PutTokenKey(k) })
		for _, secret := range [][]byte{{}, k.Private[:31], token.NewKey(time.Now()).Private.Seed()} {
			update(t, s, func(tx *Tx) error {
				_, err := tx.exec("UPDATE token_keys SET secret = $1", secret)
				return err
			})
			if keys, err := s.TokenKeys(t.Context()); err == nil {
				t.Errorf("secret of %d bytes: %d keys", len(secret), len(keys))
			}
		}
	})
}

func TestSerialsGrow(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
		draw := func(now time.Time) (n int64) {
			update(t, s, func(tx *Tx) (err error) {
				n, err = tx.NextSerial(now)
				return err
			})
			return n
		}
		first := draw(at)
		if first != at.UnixMicro() {
			t.Errorf("the first is %d, not the time", first)
		}
		if n := draw(at); n != first+1 {
			t.Errorf("at the same time %d after %d", n, first)
		}
		if n := draw(at.Add(-time.Hour)); n != first+2 {
			t.Errorf("after the clock was set back %d after %d", n, first+1)
		}
		if n := draw(at.Add(time.Hour)); n != at.Add(time.Hour).UnixMicro() {
			t.Errorf("an hour later %d after %d", n, first)
		}
		// What is rolled back has drawn nothing.
		failed := errors.New("no")
		if err := s.Update(t.Context(), func(tx *Tx) error {
			if _, err := tx.NextSerial(at.Add(2 * time.Hour)); err != nil {
				return err
			}
			return failed
		}); !errors.Is(err, failed) {
			t.Fatal(err)
		}
		if n := draw(at); n != at.Add(time.Hour).UnixMicro()+1 {
			t.Errorf("after a failure %d", n)
		}
	})
}

// Several servers of one database draw at the same time.
func TestSerialsOfSeveralServers(t *testing.T) {
	dsn := storetest.Database(t)
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	const each = 100
	var (
		mu  sync.Mutex
		all []int64
		wg  sync.WaitGroup
	)
	for range 2 {
		s := open(t, dsn, Config{})
		for range 4 {
			wg.Go(func() {
				for range each {
					var n int64
					if err := s.Update(context.Background(), func(tx *Tx) (err error) {
						n, err = tx.NextSerial(at)
						return err
					}); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					all = append(all, n)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(all)
	if n := len(slices.Compact(slices.Clone(all))); n != 8*each || all[0] != at.UnixMicro() || all[len(all)-1] != at.UnixMicro()+8*each-1 {
		t.Errorf("%d different serials of %d, from %d to %d", n, 8*each, all[0], all[len(all)-1])
	}
}
