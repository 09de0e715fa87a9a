package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux/wire"
)

// serverRestore is `waypoint server restore FILE|-`.
type serverRestore struct {
	File     string `arg:"" placeholder:"FILE" help:"The snapshot; - is standard input."`
	Config   string `placeholder:"FILE" help:"The server's configuration (default /etc/waypoint/server.toml if present)."`
	StateDir string `placeholder:"DIR" from:"WAYPOINT_SERVER_STATE_DIR" help:"The stopped server's state directory (default as that of waypoint server run)."`
	Store    string `placeholder:"URL" from:"WAYPOINT_SERVER_STORE" help:"The store: a file, or postgres://... (default waypoint.db in the state directory). The list of processes shows a URL to every user of this host until the program has begun: give one with a password by the configuration or the environment."`
}

func (*serverRestore) Help() string {
	return `The server must not run: stop it first, under systemd with its sockets (systemctl stop waypoint-server.socket stops them all).
All of the snapshot is checked before anything is changed. The store that was there is kept beside the new one: a file
beside the file, or in PostgreSQL a schema of its own.`
}

func (c *serverRestore) Run(a *app) error {
	if err := c.restore(a); err != nil {
		return fmt.Errorf("restore %s: %w", c.File, err)
	}
	return nil
}

func (c *serverRestore) restore(a *app) error {
	cfg, err := (&serverRun{Config: c.Config, StateDir: c.StateDir, Store: c.Store}).config(a)
	if err != nil {
		return err
	}
	in := a.stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if errors.Is(err, fs.ErrNotExist) {
			return wire.Errorf(wire.NotFound, "there is no such file")
		}
		if err != nil {
			return wire.Errorf(wire.BadUsage, "%v", err)
		}
		defer f.Close()
		in = f
	} else if output.IsTerminal(in) {
		return wire.Errorf(wire.BadUsage, "standard input is a terminal").WithHint("name a file, or send the snapshot through a pipe")
	}
	// What could only be read as root is open now.
	if err := beOwner(cfg.StateDir); err != nil {
		return err
	}
	done, err := daemon.Restore(a.ctx, daemon.Config{StateDir: cfg.StateDir, StoreDSN: cfg.Store}, in)
	if err != nil {
		return err
	}
	return a.print(done, func(w io.Writer) error {
		fmt.Fprintf(w, "Restored server %s as it was at %s.\n", done.ServerID, done.TakenAt.Format(time.RFC3339))
		if done.Before != "" {
			fmt.Fprintf(w, "The store before is kept as %s.\n", done.Before)
		}
		return nil // answer remembers what could not be written
	})
}

// beOwner has a process of root's go on as the user whose directory it is. What
// it writes there is then that user's, as the server needs it, and nothing that
// this user may have put there can have root write elsewhere.
func beOwner(dir string) error {
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // made as root's; the service manager gives it to its user
	}
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if os.Geteuid() != 0 || st.Uid == 0 {
		return nil
	}
	uid, gid := int(st.Uid), int(st.Gid)
	err = syscall.Setgroups([]int{gid})
	if err == nil {
		err = syscall.Setresgid(gid, gid, gid)
	}
	if err == nil {
		err = syscall.Setresuid(uid, uid, uid)
	}
	if err != nil {
		return fmt.Errorf("become user %d, who owns %s: %w", uid, dir, err)
	}
	return nil
}
