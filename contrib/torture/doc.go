// Package torture proves, over the real binary as processes, what the first
// release promises. It has tests only; they know nothing of the program but
// its command line, its protocol (mux/wire, mux/client) and what the kernel
// tells of processes.
//
// # The model
//
// A job is a shell script that leaves three traces: a line "tag begin attempt pid"
// in a file when it starts, numbered lines on its output, and a line "tag end
// attempt pid" in the same file when it ends by itself. The order of that file is
// the order in which processes of all jobs began and ended. From these and from what
// the server says:
//
//   - A job whose Submit returned ends, with the exit code or the signal of
//     its script.
//   - A job starts once, as the attempt on record: no other attempt of it is live
//     at any time. What makes an attempt go back to the queue comes before its start.
//   - Whatever started ended by itself, by the same process: nobody else's
//     death touched it. Only a job that was canceled may be cut: it ends as
//     canceled, its output is the beginning of its numbered lines, and what it
//     left running is gone, also what has left its session.
//   - Its output is its numbered lines: none lost, none twice, offsets without
//     a gap; for one who asks afterwards and for one who followed all the way
//     through every fault, be it a call or a command.
//   - No job is late by more than some minutes.
//   - Afterwards there is no process and no cgroup left, and the server has the
//     jobs that were queued, as they were when they ended, and no others.
//   - A runner that is out of reach for less than the lease changes none of
//     this. For longer: the job ends once, as runner_lost, and does not start again;
//     its output is the beginning of its numbered lines; when the runner is back
//     its processes end, and what is left of its output comes, and a late result,
//     behind which nothing changes.
//
// # The faults
//
// A round (adversary) breaks one thing or several at once at random moments
// and mends them, within the lease: kill -9 of server, agent or both, also while
// they start; SIGSTOP; an end in good order and a new start; and between each
// side and the server cuts in one direction or both, half-open connections,
// resets, black holes for new connections, loss, a slow link. TestRounds is
// all of it; TestHistory too, under clients that work on the same jobs, and now and
// then its runner is out of reach for longer than the lease. TestBadLink is resets
// on links that delay. Where namespaces cannot be had the network stays whole, and
// the test says so.
//
// TestSeveralServers is the same of servers over one PostgreSQL, behind one
// socket, whichever of them dies or is stopped and wherever everybody moves;
// TestDatabaseRestarts ends the database under them. Without PostgreSQL's
// programs on the machine they are skipped.
//
// # Knobs
//
//	TORTURE_ROUNDS    rounds of faults, default 10 in TestRounds, 6 in TestHistory, 8 in TestBadLink
//	TORTURE_DURATION  in each of these rounds for so long instead ("10m")
//	TORTURE_SEED      of what is random; printed by each run
//	TORTURE_ADOPTIONS rounds of TestKillDuringAdoption, default 25
//	TORTURE_JOBS      jobs of TestEachJobOnce, default 10000, 1000 with -short
//	TORTURE_LOG_MB    of TestBigLog, default 200, 20 with -short
//	TORTURE_RACE      1: the binary is built with the race detector
//	TORTURE_BINARY    use this binary instead of building one
//	TORTURE_KEEP      1: leave the directories with state and logs behind
//
// Everything lives in one directory /tmp/wt-*. Every process whose program,
// command line or environment names it is killed at the end: by the test, or by a
// reaper that notices when the test process itself has died.
package torture
