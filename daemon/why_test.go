package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/waypointd/waypoint/mux/wire"
)

// Why a job has ended is said once.
func TestWhyEnded(t *testing.T) {
	at := time.Unix(1e9, 0)
	for want, j := range map[string]wire.Job{
		"as success":                     {State: wire.Success},
		"as canceled":                    {State: wire.Canceled, Reason: wire.ReasonCanceled, Error: "canceled"},
		"as canceled: canceled by force": {State: wire.Canceled, Reason: wire.ReasonCanceled, Error: "canceled by force"},
		"as error (failed): it failed":   {State: wire.Failed, Reason: wire.ReasonFailed, Error: "it failed"},
	} {
		j.FinishedAt = at
		if got, ok := strings.CutPrefix(whyEnded(j), "it ended at 2001-09-09T01:46:40Z "); !ok || got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if one, two := jobsAre(1), jobsAre(2); one != "1 job is" || two != "2 jobs are" {
		t.Errorf("%q, %q", one, two)
	}
}
