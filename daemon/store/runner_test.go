package store

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

func TestRunners(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.UnixMicro(1_763_000_000_123_456).UTC()
		list := func(f wire.RunnerFilter) (ids []string) {
			t.Helper()
			rs, err := s.Runners(t.Context(), f)
			if err != nil || rs == nil {
				t.Fatal(rs, err)
			}
			for _, r := range rs {
				ids = append(ids, r.ID)
			}
			return ids
		}
		if got := list(wire.RunnerFilter{}); got != nil {
			t.Fatal(got)
		}
		r := RunnerRecord{Key: []byte{1, 2, 3}, Runner: wire.Runner{ID: "r1", State: wire.Pending, Kind: wire.KindRemote,
			Labels: map[string]string{"os": "linux", "empty": ""}, FirstSeen: at, LastSeen: at, Fingerprint: "SHA256:x", Version: "1",
			Hostname: "h", OS: "linux", Arch: "arm64", Isolation: "cgroup", Concurrency: 4, Draining: true,
			Problem: wire.OtherLabels, Detail: "why", Offered: map[string]string{}, TokenSource: wire.SourceFile, TokenIssued: at.Add(-time.Hour),
			TokenExpiry: at.Add(time.Hour), Peer: "uid 7"}, PeerGroup: "uid 7", Grant: "secret", RejectedSerial: 1 << 60}
		update(t, s, func(tx *Tx) error { return tx.PutRunner(r) })
		got, err := s.Runner(t.Context(), "r1")
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("%v\n%+v\n%+v", err, got, r)
		}
		r.State, r.LastSeen, r.Draining, r.Labels = wire.Adopted, at.Add(time.Hour), false, nil
		update(t, s, func(tx *Tx) error {
			if err := tx.PutRunner(r); err != nil {
				return err
			}
			got, err := tx.Runner("r1")
			if err == nil && !reflect.DeepEqual(got, r) {
				err = fmt.Errorf("%+v, want %+v", got, r)
			}
			return err
		})
		update(t, s, func(tx *Tx) error {
			for i := range 700 {
				state := wire.Adopted
				if i%2 == 1 {
					state = wire.Rejected
				}
				if err := tx.PutRunner(RunnerRecord{Runner: wire.Runner{ID: fmt.Sprintf("x%03d", i), State: state, Kind: wire.KindRemote,
					Labels: map[string]string{"n": fmt.Sprint(i % 350)}}}); err != nil {
					return err
				}
			}
			return nil
		})
		counts, err := s.RunnerCounts(t.Context())
		if err != nil || counts[wire.Adopted] != 351 || counts[wire.Rejected] != 350 || len(counts) != 2 {
			t.Fatal(counts, err)
		}
		if got := list(wire.RunnerFilter{Limit: 3, After: "r1"}); fmt.Sprint(got) != "[x000 x001 x002]" {
			t.Fatal(got)
		}
		if got := list(wire.RunnerFilter{}); len(got) != 50 {
			t.Fatal(len(got))
		}
		if got := list(wire.RunnerFilter{Labels: map[string]string{"n": "349"}}); fmt.Sprint(got) != "[x349 x699]" {
			t.Fatal(got)
		}
		if got := list(wire.RunnerFilter{State: wire.Rejected, Limit: 1000}); len(got) != 350 {
			t.Fatal(len(got))
		}
		for range 2 {
			update(t, s, func(tx *Tx) error { return tx.DeleteRunner("r1") })
		}
		_, err = s.Runner(t.Context(), "r1")
		want(t, err, wire.NotFound)
		want(t, s.Update(t.Context(), func(tx *Tx) error { _, err := tx.Runner("r1"); return err }), wire.NotFound)
	})
}

// The pending ones come in the order in which they were seen, of all peers or of one.
func TestPending(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		at := time.UnixMicro(1_763_000_000_000_000).UTC()
		put := func(id, group string, state wire.RunnerState, seen time.Duration) {
			t.Helper()
			update(t, s, func(tx *Tx) error {
				return tx.PutRunner(RunnerRecord{PeerGroup: group, Runner: wire.Runner{ID: id, State: state, Kind: wire.KindRemote, LastSeen: at.Add(seen)}})
			})
		}
		put("new", "uid 1", wire.Pending, 3*time.Hour)
		put("old", "uid 1", wire.Pending, 1*time.Hour)
		put("middle", "uid 2", wire.Pending, 2*time.Hour)
		put("adopted", "uid 1", wire.Adopted, 0)
		for group, want := range map[string]string{"": "[old middle new]", "uid 1": "[old new]", "uid 2": "[middle]", "uid 3": "[]"} {
			if got, err := s.Pending(t.Context(), group); err != nil || fmt.Sprint(got) != want {
				t.Errorf("%q: %v, %v", group, got, err)
			}
			update(t, s, func(tx *Tx) error {
				got, err := tx.Pending(group)
				if err == nil && fmt.Sprint(got) != want {
					err = fmt.Errorf("%q: %v", group, got)
				}
				return err
			})
		}
		if n, err := s.PendingCount(t.Context()); n != 3 || err != nil {
			t.Error(n, err)
		}
		update(t, s, func(tx *Tx) error {
			n, err := tx.PrunePending(at.Add(2 * time.Hour))
			if left, _ := tx.PendingCount(); err == nil && (n != 1 || left != 2) {
				err = fmt.Errorf("%d removed, %d left", n, left)
			}
			return err
		})
		if got, err := s.Pending(t.Context(), ""); err != nil || fmt.Sprint(got) != "[middle new]" {
			t.Error(got, err)
		}
	})
}

func TestSettings(t *testing.T) {
	onEach(t, func(t *testing.T, dsn string) {
		s := open(t, dsn, Config{})
		for _, v := range []string{"", "a", "b"} {
			if v != "" {
				update(t, s, func(tx *Tx) error { return tx.PutSetting("id", v) })
			}
			if got, err := s.Setting(t.Context(), "id"); err != nil || got != v {
				t.Fatal(got, err)
			}
		}
	})
}
