package lab

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestJournal: what server and runner log has fields that can be asked for, and
// explanations.
func TestJournal(t *testing.T) {
	onNewest(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.waypoint("server", "status")
		runner := l.adopted()
		job := l.submit("echo well")
		equal(l, "the job", l.ended(job).State, "success")

		said := map[string]int{}
		var explained string
		l.await("server and runner have logged the job in fields", func() bool {
			clear(said)
			for line := range strings.Lines(l.run("journalctl", "--output=json", "--all", "WAYPOINT_JOB="+job)) {
				var e map[string]any
				if err := json.Unmarshal([]byte(line), &e); err != nil {
					l.t.Fatal(err)
				}
				unit, _ := e["_SYSTEMD_UNIT"].(string)
				said[unit]++
				if id, ok := e["MESSAGE_ID"].(string); ok {
					explained = id
				}
				if e["MESSAGE"] == "" || e["PRIORITY"] == nil || e["SYSLOG_IDENTIFIER"] == nil {
					l.t.Errorf("a line without text, priority or name: %s", line)
				}
			}
			return said["waypoint-server.service"] > 0 && said["waypoint-runner.service"] > 0
		})
		contains(l, "what is logged of the runner", l.run("journalctl", "--output=cat", "--unit=waypoint-server", "WAYPOINT_RUNNER="+runner), "adopted")
		// Who did what.
		contains(l, "what root did", l.run("journalctl", "--output=json", "WAYPOINT_ACTOR=host:root", "WAYPOINT_METHOD=runner.adopt"), `"WAYPOINT_OBJECT":"`+runner+`"`)
		// What a person is to do is in the log's own line, and nothing is said beside it.
		equal(l, "what the runner said while it was pending", strings.Count(l.run("journalctl", "--output=cat", "--unit=waypoint-runner"), "--fingerprint"), 1)
		contains(l, "its hint", l.run("journalctl", "--output=json", "--unit=waypoint-runner", "WAYPOINT_PROBLEM=no_token"), `"WAYPOINT_HINT":"waypoint runner adopt `+runner)
		if explained == "" {
			l.t.Fatal("no line about the job has a MESSAGE_ID")
		}
		if catalog := l.run("journalctl", "--dump-catalog", explained); !strings.Contains(catalog, "Subject: ") {
			l.t.Errorf("message %s is not explained:\n%s", explained, catalog)
		}
		contains(l, "journalctl --catalog", l.run("journalctl", "--catalog", "--no-pager", "MESSAGE_ID="+explained), " Subject: Job "+job+" has ended")
		for _, e := range l.journal.find(func(e entry) bool {
			return strings.HasPrefix(e["_SYSTEMD_UNIT"], "waypoint-") && (strings.Contains(e["MESSAGE"], "level=") || strings.HasPrefix(e["MESSAGE"], "{"))
		}) {
			l.t.Errorf("a line that is not in fields: %s", e["MESSAGE"])
		}
	})
}
