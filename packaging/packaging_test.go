package packaging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestUsers: an rpm's users and groups are made before its files are there, so a script has their lines too.
func TestUsers(t *testing.T) {
	script := read(t, "scripts/rpm-pre")
	lines := 0
	for line := range strings.Lines(read(t, "waypoint.sysusers")) {
		if !strings.HasPrefix(line, "#") {
			lines++
			if !strings.Contains(script, "\n"+line) {
				t.Errorf("scripts/rpm-pre lacks %q", line)
			}
		}
	}
	if lines != 5 {
		t.Errorf("waypoint.sysusers has %d lines", lines)
	}
}

// TestTemplates: what is said of one runner is said of every further one; a
// template is the unit with another name in its paths.
func TestTemplates(t *testing.T) {
	instance := strings.NewReplacer(
		"waypoint-jobs.service", "waypoint-jobs@%i.service",
		"waypoint-runner.service", "waypoint-runner@%i.service",
		"/var/lib/waypoint-jobs", "/var/lib/waypoint-jobs-%i",
		"StateDirectory=waypoint-jobs", "StateDirectory=waypoint-jobs-%i",
		"StateDirectory=waypoint-runner", "StateDirectory=waypoint-runner-%i",
		"--managed", "--managed --config /etc/waypoint/runner-%i.toml",
		"/etc/waypoint/credentials/runner", "/etc/waypoint/credentials/runner-%i",
		"Description=Waypoint runner", "Description=Waypoint runner %i",
		"Description=Waypoint jobs", "Description=Waypoint jobs %i",
	)
	for _, name := range []string{"waypoint-runner", "waypoint-jobs"} {
		unit := read(t, filepath.Join("units", name+".service"))
		template := read(t, filepath.Join("units", name+"@.service"))
		if want := instance.Replace(unit); template != want {
			t.Errorf("units/%s@.service is not what follows from units/%[1]s.service:\n%s", name, want)
		}
	}
}
