package operation

import (
	"cmp"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
)

// cleanPath is the PATH of a job that runs on a runner.
const cleanPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// tokenVariable is the one variable that no job ever sees.
const tokenVariable = "WAYPOINT_SERVER_TOKEN"

// Env is the environment of an assignment, sorted, each name once: base, or
// where it is nil a clean one (PATH, HOME, TMPDIR, USER, LANG); then
// WAYPOINT_*, WP_VAR_* and the job's own, the later over the earlier. What
// base has of another job (WAYPOINT_JOB_ID and the like) is taken out, and
// the caller's token always.
func Env(a wire.Assignment, l Layout, base []string) []string {
	env := map[string]string{}
	if base == nil {
		env["PATH"] = cleanPath
		env["HOME"] = l.Home
		env["TMPDIR"] = l.TempDir()
		env["USER"] = cmp.Or(l.User, userName())
		env["LANG"] = "C.UTF-8"
	}
	for _, kv := range base {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" && !aboutJob(k) {
			env[k] = v
		}
	}
	maps.Copy(env, facts(a, l))
	for k, v := range a.Spec.Vars {
		env["WP_VAR_"+k] = v
	}
	maps.Copy(env, a.Spec.Env)
	delete(env, tokenVariable)
	list := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	return list
}

// facts are what Waypoint says about an assignment; what is not so is absent.
func facts(a wire.Assignment, l Layout) map[string]string {
	env := map[string]string{
		"WAYPOINT_PROJECT":   a.Spec.Project,
		"WAYPOINT_APP":       a.Spec.App,
		"WAYPOINT_WORKSPACE": cmp.Or(a.Spec.Workspace, "default"),
		"WAYPOINT_OPERATION": string(a.Spec.Operation),
		"WAYPOINT_JOB_ID":    a.Job,
		"WAYPOINT_ATTEMPT":   strconv.Itoa(a.Attempt),
		"WAYPOINT_ARTIFACT":  l.Artifact,
		"WAYPOINT_OUTPUT":    l.Output,
	}
	if a.Sequence > 0 {
		env["WAYPOINT_SEQUENCE"] = strconv.FormatInt(a.Sequence, 10)
	}
	if d := a.Deployment; d != nil {
		for _, k := range slices.Sorted(maps.Keys(d.Outputs)) {
			env["WAYPOINT_DEPLOYMENT_"+variableFrom(k)] = d.Outputs[k]
		}
		env["WAYPOINT_DEPLOYMENT"] = strconv.FormatInt(d.Number, 10)
	}
	maps.DeleteFunc(env, func(k, v string) bool { return v == "" && !strings.HasPrefix(k, "WAYPOINT_DEPLOYMENT_") })
	return env
}

// aboutJob reports whether a variable of the caller's environment speaks of
// the job that the caller itself may be, or is the token.
func aboutJob(name string) bool {
	switch name {
	case tokenVariable, "WAYPOINT_PROJECT", "WAYPOINT_APP", "WAYPOINT_WORKSPACE", "WAYPOINT_OPERATION", "WAYPOINT_JOB_ID",
		"WAYPOINT_ATTEMPT", "WAYPOINT_SEQUENCE", "WAYPOINT_ARTIFACT", "WAYPOINT_OUTPUT", "WAYPOINT_DEPLOYMENT":
		return true
	}
	return strings.HasPrefix(name, "WAYPOINT_DEPLOYMENT_")
}

// userName is the name of this process's user, its number where it has none.
func userName() string {
	uid := strconv.Itoa(os.Getuid())
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}

// variableFrom makes an output's key part of a variable's name.
func variableFrom(key string) string {
	b := []byte(strings.ToUpper(key))
	for i, c := range b {
		if !isAlnum(c) {
			b[i] = '_'
		}
	}
	return string(b)
}

// CheckVariable refuses a name that a job cannot have in its environment.
func CheckVariable(name string) error {
	switch {
	case !validVariable(name):
		return wire.Errorf(wire.BadUsage, "%q cannot be the name of a variable", name)
	case name == tokenVariable:
		return wire.Errorf(wire.BadUsage, "%s is never given to a job", name)
	}
	return nil
}

// validVariable reports whether a shell can name the variable.
func validVariable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && (!isAlnum(c) || i == 0 && c <= '9') {
			return false
		}
	}
	return s != ""
}
