// Command bench measures the real program: it starts `waypoint server run`
// and `waypoint runner agent` in a temporary directory, does with them what
// users do, and prints each figure beside a floor: the least that the machine
// can do for the same purpose, measured in turns with it in the same run. On
// a noisy machine the ratio is worth more than the figure.
//
//	bench [-quick] [-million] [-dir DIR] [-keep] [BINARY]
//
// Without BINARY it builds bin/waypoint first. The directory is made in
// /var/tmp, which is on a disk where most others are not; a run takes about
// 105 seconds, with -quick 30.
//
// It is a report: no figure is good or bad enough to change the exit code,
// which is 1 as soon as anything does not work (a job that does not succeed, a
// byte of output that is missing, a process that ends by itself).
//
// # What is measured
//
// One program, this one, is all the clients; each client has a connection of its own. Two
// runners take the jobs: "wide" has room for 64 at once, "plain" for as many as
// there are CPUs. What is not said to be otherwise runs on wide.
//
// "reattach" has a server and a runner of its own, over a Unix socket and over
// TLS: it kills the agent under 200 jobs that print, starts another, and gives the
// longest time from that start until the server had what each job printed
// meanwhile, and until its next line was with a follower.
//
// "crowd" has a server of its own as well, and presses on it over TCP with 10,000
// connections that say nothing, 1,000 that speak rubbish and one that opens streams
// for ever, from one address and then from as many: what good clients wait meanwhile.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == tickCommand {
		tick(os.Args[2])
		return
	}
	if len(os.Args) == 3 && os.Args[1] == beatCommand {
		beat(os.Args[2])
		return
	}
	if len(os.Args) == 3 && os.Args[1] == crowdCommand {
		crowd(os.Args[2])
		return
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	var c config
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&c.quick, "quick", false, "less of everything, within 30 seconds")
	flags.BoolVar(&c.million, "million", false, "measure a store of a million finished jobs, and nothing else")
	flags.StringVar(&c.only, "only", "", "only the parts whose name contains this: "+strings.Join(partNames(), " "))
	flags.StringVar(&c.parent, "dir", "/var/tmp", "where to make the directory of the run")
	flags.BoolVar(&c.keep, "keep", false, "keep that directory")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 1 {
		fmt.Fprintln(stderr, "bench: more than one binary is named")
		return 2
	}
	c.binary = flags.Arg(0)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := c.measure(ctx, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

// config is what the flags say.
type config struct {
	quick, million, keep bool
	only, parent, binary string
}

// part is one section of the report.
type part struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

// parts run in this order: what fills the store comes last.
var parts = []part{
	{"start", measureStart},
	{"idle", measureIdle},
	{"latency", measureLatency},
	{"command", measureCommand},
	{"rate", measureRate},
	{"log", measureLog},
	{"lag", measureLag},
	{"reattach", measureReattach},
	{"crowd", measureCrowd},
	{"enqueue", measureEnqueue},
	{"size", measureSize},
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// bench is one run.
type bench struct {
	config
	dir    string // of the run
	report *report
	server *process
	wide   *agent
	plain  *agent
}

func (c config) measure(ctx context.Context, stdout, stderr io.Writer) (err error) {
	began := time.Now()
	b := &bench{config: c}
	if err := b.prepare(ctx, stderr); err != nil {
		return err
	}
	defer func() {
		if c.keep {
			fmt.Fprintf(stderr, "bench: kept %s\n", b.dir)
		} else {
			err = errors.Join(err, os.RemoveAll(b.dir))
		}
	}()
	b.report = newReport(stdout)
	b.report.title("%s, %d CPUs, %s on %s, %s", b.version(ctx), runtime.NumCPU(), fileSystem(b.dir), c.parent, runtime.Version())
	defer func() { err = errors.Join(err, b.stop()) }()
	if c.million {
		return b.measureMillion(ctx)
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	for _, p := range parts {
		if !strings.Contains(p.name, c.only) {
			continue
		}
		if err := p.run(ctx, b); err != nil {
			return fmt.Errorf("measure %s: %w%s", p.name, err, b.lastWords())
		}
		if err := b.alive(); err != nil {
			return fmt.Errorf("measure %s: %w%s", p.name, err, b.lastWords())
		}
	}
	b.report.note("%.0f s", time.Since(began).Seconds())
	return nil
}

// prepare makes the directory and the binary.
func (b *bench) prepare(ctx context.Context, stderr io.Writer) (err error) {
	if b.binary == "" {
		b.binary = filepath.Join("bin", "waypoint")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.binary, "./cmd/waypoint")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("build %s (in the root of the repository): %w", b.binary, err)
		}
	}
	if b.binary, err = filepath.Abs(b.binary); err != nil {
		return fmt.Errorf("find binary: %w", err)
	}
	if b.dir, err = os.MkdirTemp(b.parent, "waypoint-bench-"); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	// A job may run as another user, and reads files in here.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

func (b *bench) version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, b.binary, "version").Output()
	if err != nil {
		return b.binary
	}
	return strings.TrimSpace(string(out))
}

// path is a file of this run.
func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// span is how long one round of a measurement goes on.
func (b *bench) span(usual time.Duration) time.Duration {
	if b.quick {
		return usual / 3
	}
	return usual
}

// rounds is how often measurement and floor take turns.
func (b *bench) rounds() int {
	if b.quick {
		return 2
	}
	return 3
}

// fileSystem names the kind of file system that path is on.
func fileSystem(path string) string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return "an unknown file system"
	}
	switch st.Type {
	case 0xef53:
		return "ext4"
	case 0x58465342:
		return "xfs"
	case 0x9123683e:
		return "btrfs"
	case 0x2fc12fc1:
		return "zfs"
	case 0x794c7630:
		return "overlayfs"
	case 0x01021994:
		return "tmpfs (no disk: durability costs nothing here)"
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
