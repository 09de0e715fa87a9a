package client

import (
	"context"
	"iter"

	"github.com/waypointd/waypoint/mux/wire"
)

// Audit yields the entries that a filter selects, as many as its limit, all
// where that is 0; in several messages. An error ends it.
func (c *Client) Audit(ctx context.Context, f wire.AuditFilter) iter.Seq2[wire.AuditEntry, error] {
	return func(yield func(wire.AuditEntry, error) bool) {
		const most = 500 // of one answer
		for left := f.Limit; ; {
			f.Limit = most
			if left > 0 {
				f.Limit = min(left, most)
			}
			page, err := read[wire.AuditPage](ctx, c, wire.MethodAuditList, f)
			if err != nil {
				yield(wire.AuditEntry{}, err)
				return
			}
			for _, e := range page.Entries {
				if !yield(e, nil) {
					return
				}
			}
			n := len(page.Entries)
			if left > 0 {
				if left -= n; left <= 0 {
					return
				}
			}
			switch {
			case page.Next != "":
				f.After = page.Next
			case n == 0 || n < f.Limit && !page.More:
				return
			default:
				f.After = page.Entries[n-1].ID
			}
		}
	}
}
