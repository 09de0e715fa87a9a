// Command waypoint is the whole of Waypoint in one binary: the server, the
// runner and the command line that asks things of a server.
//
// main is a recipe: words become a command (command.go), the command finds
// its server (address.go, connection.go) and asks it something, and whatever
// came of it becomes an exit code (exit.go). This package alone reads flags,
// the environment and signals, and it alone exits.
//
// Three ways to have a job done share one path from client over server to
// runner (engine.go); they differ in who owns the two ends:
//
//	                server           runner
//	remote          another process  another process
//	in-process      another process  this process
//	local mode      this process     this process
//
// stdout carries the answer and nothing else; what is said about it goes to
// stderr. An error is one line, "waypoint: <what failed>: <why>", and where
// there is a next step a second one, "hint: <what to do>".
package main

import (
	"context"
	"io"
	"os"

	"github.com/waypointd/waypoint/runner/executor"
)

func main() {
	// The executor starts this program once for each job where there are no
	// cgroups: nothing may come before this, a job waits for it.
	if os.Args[0] == executor.ShimArg {
		os.Exit(executor.ShimMain())
	}
	args := takeArguments(os.Args[1:])
	os.Exit(run(context.Background(), args, os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}

// run does what the words say and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	a := newApp(ctx, stdin, stdout, stderr, env)
	defer a.close()
	return a.report(a.execute(args))
}
