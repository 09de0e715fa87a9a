package lab

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
)

// telling is the length of what gives a secret away: so long a part of one is
// nothing that anybody says by chance.
const telling = 16

// toldOf returns what a text has of secrets, by their names.
func toldOf(text string, secrets map[string]string) map[string]string {
	parts := map[string]string{}
	for name, secret := range secrets {
		for i := 0; i+telling <= len(secret); i++ {
			parts[secret[i:i+telling]] = name
		}
	}
	told := map[string]string{}
	for i := 0; i+telling <= len(text); i++ {
		if name, ok := parts[text[i:i+telling]]; ok {
			told[name] = text[max(0, i-200):min(len(text), i+telling+50)]
		}
	}
	return told
}

// TestNoSecretIsTold has a host do what it does with secrets, with all of its logs on:
// tokens of every kind are made, shown, wrong, renewed and revoked, and jobs get some in
// their environment and input. No part of one is in the journal, in the list of
// processes, in the audit or in what commands say on stderr.
func TestNoSecretIsTold(t *testing.T) {
	onNewest(t, func(l *lab, p packages) {
		l.install(p.new.deb)
		l.sh(`echo 'log_level = "debug"' >>/etc/waypoint/server.toml; echo 'log_level = "debug"' >>/etc/waypoint/runner.toml`)
		l.dropIn("waypoint-jobs", "Environment=WAYPOINT_LOG_LEVEL=debug")
		secrets := map[string]string{}
		for _, name := range []string{"environment of the project", "environment of the build", "standard input", "a flag", "not even a token"} {
			secrets[name] = rand.Text()
		}
		// keep notes the secret that is in a file.
		keep := func(name, file string) {
			l.t.Helper()
			if secrets[name] = l.run("cat", file); len(secrets[name]) < 2*telling {
				l.t.Fatalf("%s is only %q", name, secrets[name])
			}
		}
		made := func(name, file string, args ...string) {
			l.t.Helper()
			l.sh("umask 077; waypoint -v -v " + strings.Join(args, " ") + " >" + file + " 2>>/root/said")
			keep(name, file)
		}
		// waypointAs is a command of somebody else, and the exit code that it has to have.
		waypointAs := func(code int, script string) {
			l.t.Helper()
			if r := l.try("sh", "-uc", "export XDG_CONFIG_HOME=/root/other; ("+script+") 2>>/root/said"); r.code != code {
				l.t.Errorf("%s: exit code %d, and not %d: %s\n%s", script, r.code, code, r.stdout, l.sh("tail -n 3 /root/said"))
			}
		}
		const far = "waypoint -v -v --server-addr tcp://127.0.0.1:9701 "
		watch := l.begin("sh", "-c", "until [ -e /tmp/enough ]; do ps -ewwo args; sleep 0.02; done >/root/ps")

		l.waypoint("server", "status")
		l.listening()
		runner := l.adopted()
		keep("the runner's key", "/var/lib/waypoint-runner/identity.key")
		keep("the runner's token", "/var/lib/waypoint-runner/token")
		made("a user's token", "/root/user", "user token")
		made("an expired token", "/root/expired", "user token --expires-in 1s")
		made("an invite", "/root/invite", "user invite alice --role operator")
		made("a runner token", "/root/runner", "runner token --id elsewhere")
		l.sh(`umask 077; tr A-Za-z N-ZA-Mn-za-m </root/user | sed s/^[^_]*/wpusr/ >/root/forged; head -c -9 /root/runner >/root/torn`)
		keep("a forged token", "/root/forged")
		l.place("/root/nonsense", secrets["not even a token"], 0o600)

		waypointAs(0, "waypoint -v -v login 127.0.0.1:9701 --context mine --token-file /root/user")
		waypointAs(0, "waypoint -v -v login 127.0.0.1:9701 --context hers --token-file - </root/invite")
		l.sh(`umask 077; sed -n 's/^token = "\(.*\)"/\1/p' /root/other/waypoint/contexts/hers.toml >/root/hers`)
		keep("the token of who was invited", "/root/hers")
		waypointAs(0, "waypoint -v -v --context hers job list")
		waypointAs(4, "waypoint -v -v login 127.0.0.1:9701 --context again --token-file /root/invite")
		for _, file := range []string{"forged", "runner", "torn", "nonsense"} {
			for _, call := range []string{far + "--token-file /root/" + file, "WAYPOINT_SERVER_TOKEN=$(cat /root/" + file + ") " + far} {
				if r := l.try("sh", "-uc", call+" job list 2>>/root/said"); r.code == 0 {
					l.t.Errorf("%s: it is let in", call)
				}
			}
		}
		l.await("a token expires", func() bool {
			return l.try("sh", "-uc", far+"--token-file /root/expired job list 2>>/root/said").code == 4
		})

		// Runners: by the environment, by a credential that is wrong.
		l.sh(`umask 077; install -d /var/lib/elsewhere; echo "WAYPOINT_SERVER_TOKEN=$(cat /root/runner)" >/root/environment`)
		l.run("systemd-run", "--unit=elsewhere", "--property=Type=notify", "--property=EnvironmentFile=/root/environment", "--setenv=WAYPOINT_LOG_LEVEL=debug",
			"waypoint", "runner", "agent", "--server-addr", "tcp://127.0.0.1:9701", "--server-tls-skip-verify", "--state-dir", "/var/lib/elsewhere", "--id", "elsewhere", "--config", "/dev/null")
		l.awaitRunner("admitted by its environment", func(r remote) bool { return r.ID == "elsewhere" && ready(r) })
		l.sh("umask 077; cat /root/torn >/etc/waypoint/credentials/runner/token; systemctl restart waypoint-runner")
		mine := func(r remote) bool { return r.ID == runner && ready(r) }
		l.awaitRunner("admitted in spite of a torn token", mine)
		l.sh("cat /root/forged >/etc/waypoint/credentials/runner/token; systemctl restart waypoint-runner")
		l.awaitRunner("admitted in spite of a forged token", mine)

		// Jobs.
		l.run("mkdir", "/root/shop")
		l.place("/root/shop/waypoint.toml", fmt.Sprintf("project = \"shop\"\nenv = {PASSWORD = %q}\n[[app]]\nname = \"web\"\n[app.build]\nenv = {KEY = %q}\nscript = 'echo \"$PASSWORD and $KEY\"; mkdir out; echo \"$KEY\" >out/made'\noutput = [\"out/\"]\n",
			secrets["environment of the project"], secrets["environment of the build"]), 0o600)
		l.place("/root/input", secrets["standard input"], 0o600)
		for _, where := range []string{"--runner " + runner, "--runner elsewhere"} {
			said := l.sh("cd /root/shop; waypoint -v -v build " + where + " 2>>/root/said")
			equal(l, "how many secrets a build tells that is told to", len(toldOf(said, secrets)), 2)
			contains(l, "what a job says of its input", l.sh("waypoint -v -v run "+where+" --stdin -- cat </root/input 2>>/root/said"), secrets["standard input"])
			l.try("sh", "-c", "cd /root/shop; waypoint -v -v run "+where+" --env FLAG="+secrets["a flag"]+" -- /no/such/program 2>>/root/said")
			l.try("sh", "-c", "cd /root/shop; waypoint -v -v run "+where+" --env FLAG="+secrets["a flag"]+" -- sh -c 'kill -KILL $$' 2>>/root/said")
		}

		// Other keys, other tokens.
		l.sh("waypoint -v -v server token-key rotate 2>>/root/said")
		made("a token of the second key", "/root/second", "user token")
		waypointAs(0, far+"--token-file /root/second job list")
		l.sh("waypoint -v -v runner reject " + runner + " 2>>/root/said; waypoint -v -v runner adopt " + runner + " 2>>/root/said")
		l.awaitRunner("adopted again", mine)
		keep("the runner's second token", "/var/lib/waypoint-runner/token")
		l.sh("waypoint -v -v user revoke --user alice 2>>/root/said")
		waypointAs(4, "waypoint -v -v --context hers job list")
		l.sh("waypoint -v -v server token-key rotate --revoke 2>>/root/said")
		waypointAs(4, far+"--token-file /root/second job list")
		l.await("the runner's token is good for nothing", func() bool { return !ready(l.runner(runner)) })
		l.sh("waypoint -v -v runner adopt " + runner + " 2>>/root/said")
		l.awaitRunner("adopted with the third key", mine)
		keep("the runner's third token", "/var/lib/waypoint-runner/token")
		l.run("systemctl", "restart", "waypoint-server", "waypoint-runner")
		l.awaitRunner("back", mine)
		l.run("systemctl", "stop", "waypoint-runner", "elsewhere")

		l.run("touch", "/tmp/enough")
		watch.wait()
		l.run("journalctl", "--sync")
		journal, processes := l.run("journalctl", "--output=export", "--all"), l.run("cat", "/root/ps")
		for unit, level := range map[string]string{"waypoint-server": "debug", "waypoint-runner": "info", "waypoint-jobs": "info", "elsewhere": "info"} {
			if l.run("journalctl", "--output=cat", "--priority="+level+".."+level, "--unit="+unit) == "" {
				l.t.Errorf("%s has logged nothing at the level %s", unit, level)
			}
		}
		contains(l, "the journal", journal, "login refused")
		contains(l, "the processes", processes, "waypoint runner supervisor")
		for where, text := range map[string]string{
			"the journal": journal, "what commands said": l.run("cat", "/root/said"), "the audit": l.waypoint("audit", "list", "--json"), "the runners": l.waypoint("runner", "list", "--json"),
		} {
			for name, part := range toldOf(text, secrets) {
				l.t.Errorf("%s has of %s: …%q…", where, name, part)
			}
		}
		delete(secrets, "a flag") // of a command line that shows it by itself
		for name, part := range toldOf(processes, secrets) {
			l.t.Errorf("the list of processes has of %s: …%q…", name, part)
		}
	})
}
