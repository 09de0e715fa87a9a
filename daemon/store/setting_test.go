package store

import (
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Of many that come with a value at once, through one server or two over one
// database, the first one's counts for all.
func TestKeepSetting(t *testing.T) {
	onBoth(t, func(t *testing.T, dsn string) {
		stores := []*Store{open(t, dsn, Config{})}
		if strings.HasPrefix(dsn, "postgres") {
			stores = append(stores, open(t, dsn, Config{}))
		}
		got := make([]string, 32)
		var all sync.WaitGroup
		for i := range got {
			all.Go(func() {
				if err := stores[i%len(stores)].Update(t.Context(), func(tx *Tx) (err error) {
					got[i], err = tx.KeepSetting("k", strconv.Itoa(i))
					return err
				}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		kept, err := stores[0].Setting(t.Context(), "k")
		if err != nil || kept == "" {
			t.Fatalf("kept %q, %v", kept, err)
		}
		for i, g := range got {
			if g != kept {
				t.Errorf("caller %d was told %q, kept is %q", i, g, kept)
			}
		}
	})
}
