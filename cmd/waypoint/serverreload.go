package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/waypointd/waypoint/cmd/internal/config"
	"github.com/waypointd/waypoint/cmd/internal/systemd"
	"github.com/waypointd/waypoint/daemon"
	"github.com/waypointd/waypoint/mux/wire"
)

// serverReload is `waypoint server reload`.
type serverReload struct{}

func (serverReload) Help() string {
	return `The answer comes when the new configuration holds. A configuration that cannot be used is refused, exit code 1, and
the old one stays as it was. Certificate and key are read again as well. Some keys need a restart: the answer names
those of them that have changed.`
}

func (serverReload) Run(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		done, err := conn.ServerReload(ctx)
		if wire.KindOf(err) == wire.BadUsage {
			// It is not this command that was wrong.
			return withCode{fmt.Errorf("reload server: %w", err), exitFailed}
		}
		if err != nil {
			return fmt.Errorf("reload server: %w", err)
		}
		if len(done.RestartNeeded) > 0 && !a.JSON {
			a.note("to be used after a restart: %s", strings.Join(done.RestartNeeded, ", "))
		}
		return a.print(done, func(w io.Writer) error {
			what := "nothing has changed"
			switch {
			case len(done.Changed) > 0:
				what = "changed: " + strings.Join(done.Changed, ", ")
			case len(done.RestartNeeded) > 0:
				what = "nothing that can be used now has changed"
			}
			_, err := fmt.Fprintf(w, "Configuration reloaded; %s.\n", what)
			return err
		})
	})
}

// liveConfig is the configuration of a server that runs, and how it is read
// again: completely or not at all, one time after another.
type liveConfig struct {
	read       func() (*serverConfig, error)         // flags and environment over the file
	checkLevel func(text string) (slog.Level, error) // the log's
	level      *slog.LevelVar
	log        *slog.Logger
	says       *serverSays
	server     *daemon.Server // set before anybody can ask it to reload
	listeners  []net.Listener // likewise

	mu      sync.Mutex    // held from reading to the end
	running *serverConfig // guarded by mu; replaced, never changed
}

// reload reads the configuration again for by, and says in the log and to the
// service manager what has come of it.
func (l *liveConfig) reload(ctx context.Context, by string) (wire.Reloaded, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	systemd.Reloading()
	defer systemd.Ready()
	done, err := l.apply(ctx)
	l.says.reloaded(err)
	if err != nil {
		l.log.Error("configuration refused, the one before stays", "by", by, "error", err)
		return wire.Reloaded{}, err
	}
	l.log.Info("configuration reloaded", "by", by, "changed", done.Changed, "restart_needed", done.RestartNeeded)
	return done, nil
}

// apply has the whole of the new configuration hold, or with an error nothing of
// it: what can be wrong is looked at first.
func (l *liveConfig) apply(ctx context.Context) (done wire.Reloaded, err error) {
	fresh, err := l.read()
	if err != nil {
		return done, err
	}
	if err := fresh.check(); err != nil {
		return done, err
	}
	level, err := l.checkLevel(fresh.LogLevel)
	if err != nil {
		return done, err
	}
	done.Changed, done.RestartNeeded = config.Keep(l.running, fresh)
	renewed, err := l.server.Reload(ctx, fresh.server(l.log))
	if err != nil {
		return wire.Reloaded{}, err
	}
	l.level.Set(level)
	l.running = fresh
	warnOfReaders(l.log, fresh.SecretFile, l.listeners)
	if renewed && !slices.ContainsFunc(done.Changed, func(key string) bool { return strings.HasPrefix(key, "tls_") }) {
		done.Changed = append(done.Changed, "tls_cert") // the same files, and others in them
	}
	return done, nil
}

// hear reloads at each SIGHUP until ctx ends.
func (l *liveConfig) hear(ctx context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-hangups:
			l.reload(ctx, s.String()) // the log says what has come of it
		}
	}
}
