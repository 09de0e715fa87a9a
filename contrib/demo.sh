#!/bin/bash
# A whole Waypoint in one temporary directory: a server, a runner that is
# adopted, and the example project built, deployed and released on it. Needs
# Go, git and make, no root, no network; leaves nothing behind.
set -eu

cd "$(dirname "$0")/.."
waypoint="$PWD/bin/waypoint"
dir=$(mktemp -d /tmp/wp-demo.XXXXXX) # short: a socket's path has at most 107 bytes
socket="unix://$dir/waypoint.sock"
current="start"
pids=()

step() {
	current=$1
	printf '\n== %s\n' "$current"
}

say() { printf '   %s\n' "$*"; }

run() {
	printf '   $ waypoint'
	printf ' %s' "$@"
	printf '\n'
	# Behind wait, so that a signal to this script is taken at once.
	timeout 420 "$waypoint" --server-addr "$socket" "$@" &
	wait $!
}

# ours lists what was started by this demo: processes that name its directory
# (the runner's supervisor is detached and nobody's child).
ours() {
	local proc
	for proc in /proc/[0-9]*; do
		[ "${proc#/proc/}" != $$ ] || continue
		if tr '\0' ' ' 2>/dev/null <"$proc/cmdline" | grep -qF -e "$dir/" 2>/dev/null; then
			printf '%s\n' "${proc#/proc/}"
		fi
	done
}

started() {
	local pid
	for pid in ${pids[@]+"${pids[@]}"}; do
		kill -0 "$pid" 2>/dev/null && printf '%s\n' "$pid"
	done
	return 0
}

# stop LIST SIGNAL… gives what LIST prints one signal after the other until it
# prints nothing.
stop() {
	local list=$1 signal pid i
	shift
	for signal in "$@"; do
		for pid in $($list); do
			kill -"$signal" "$pid" 2>/dev/null || true
		done
		for ((i = 0; i < 30; i++)); do
			[ -n "$($list)" ] || return 0
			sleep 0.1
		done
	done
}

# The runner ends before its supervisor does: it would start another one.
stop_all() {
	stop started TERM TERM KILL # twice TERM: the runner's first one drains
	stop ours TERM KILL
}

finish() {
	local code=$?
	trap - EXIT
	trap '' INT TERM HUP
	if [ $code -ne 0 ]; then
		printf '\n== FAILED in the step "%s" (exit code %s)\n' "$current" "$code" >&2
		for log in server runner; do
			[ -s "$dir/$log.log" ] || continue
			printf -- '-- the end of the %s log\n' "$log" >&2
			tail -n 30 "$dir/$log.log" >&2
		done
	fi
	stop_all
	chmod -R u+w "$dir" 2>/dev/null || true # Go makes parts of its cache read-only
	rm -rf "$dir"
	exit $code
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# poll WHAT SECONDS COMMAND… runs the command until it succeeds.
poll() {
	local what=$1 seconds=$2 i
	shift 2
	for ((i = 0; i < seconds * 5; i++)); do
		if "$@" >/dev/null 2>&1; then
			return 0
		fi
		if ((i > 0 && i % 25 == 0)); then
			say "still waiting for $what ($((i / 5)) of $seconds s)"
		fi
		local pid
		for pid in ${pids[@]+"${pids[@]}"}; do
			if ! kill -0 "$pid" 2>/dev/null; then
				printf 'while waiting for %s a process ended\n' "$what" >&2
				return 1
			fi
		done
		sleep 0.2
	done
	printf '%s did not come in %s s\n' "$what" "$seconds" >&2
	return 1
}

answers() { "$waypoint" --server-addr "$socket" server status; }
is_pending() { "$waypoint" --server-addr "$socket" runner list --pending | grep -q '^demo-runner '; }
is_adopted() { "$waypoint" --server-addr "$socket" runner list --state adopted | grep -q '^demo-runner '; }

step "build waypoint"
[ -x "$waypoint" ] || { echo "there is no bin/waypoint: use make demo" >&2; exit 1; }
"$waypoint" version

step "start a server"
"$waypoint" server run --state-dir "$dir/server" --listen "$socket" >"$dir/server.log" 2>&1 &
pids+=($!)
poll "the server's answer" 20 answers
say "it listens on $socket"

step "start a runner"
"$waypoint" --server-addr "$socket" runner agent --id demo-runner --label env=demo --state-dir "$dir/runner" >"$dir/runner.log" 2>&1 &
pids+=($!)
poll "the runner to ask for adoption" 20 is_pending
run runner list --pending

step "adopt it"
run runner adopt demo-runner
poll "the runner's adoption" 20 is_adopted

step "build, deploy and release the example"
mkdir "$dir/site"
cd contrib/example
say "in contrib/example"
run up --no-local --timeout 5m --var dir="$dir/site" --var go="$(go env GOROOT)/bin"
cd ../..

step "ask what serves"
answer=$("$dir/site/current/bin/hello" demo)
say "$answer"
[ "$answer" = "Hello, demo! This is hello, build 1." ] || { echo "that is not the answer of build 1" >&2; exit 1; }

step "look at it afterwards"
run runner list
run job list
[ "$("$waypoint" --server-addr "$socket" job list | grep -cw success)" -eq 3 ] ||
	{ echo "there are not three jobs that succeeded" >&2; exit 1; }

step "stop everything"
stop_all
[ -z "$(ours)" ] || { echo "something is left running: $(ours | tr '\n' ' ')" >&2; exit 1; }
printf '\nThe demo is done: it works here.\n'
