// Package systemd is what the service manager and a command say to each
// other: the sockets and credentials it hands over; when the command is ready,
// reads its configuration again, needs more time or ends; and that it is still
// alive. Without a service manager there is nothing handed over, and saying
// something does nothing.
package systemd

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Listener is a socket that was handed over.
type Listener struct {
	net.Listener
	Name string // FileDescriptorName= of its unit
}

// Unnamed reports whether a listener's name is none that somebody has given it.
func Unnamed(name string) bool {
	return name == "" || name == "unknown" || strings.HasPrefix(name, "LISTEN_FD_")
}

// Listeners are the sockets handed over to this process (LISTEN_FDS), in
// their order. It takes them: the variables are removed, so that no child
// thinks they are its own, and a second call returns none.
func Listeners() ([]Listener, error) {
	var all []Listener
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		name := f.Name()
		// FileListener has made a descriptor of its own.
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("take over socket %s: %w", name, err)
		}
		if ul, ok := l.(*net.UnixListener); ok {
			// The file is the service manager's and outlives this process.
			ul.SetUnlinkOnClose(false)
		}
		all = append(all, Listener{Listener: l, Name: name})
	}
	return all, nil
}

// Credential is the path of a credential that the service manager has handed
// over, "" where it has handed over none of that name. What is there is a copy
// from when the command was started.
func Credential(name string) string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); os.IsNotExist(err) {
		return ""
	}
	return path // unreadable is for whoever reads it to say
}

// Listens reports whether there is a service manager that listens to what is
// said to it.
func Listens() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

// Ready says that the command does its work from here on, also after Reloading.
func Ready() error { return notify(daemon.SdNotifyReady) }

// Reloading says that the command reads its configuration again, until Ready.
func Reloading() error {
	return notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// Stopping says that the command is coming to its end.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

// Status says in one line what the command is doing.
func Status(line string) error { return notify("STATUS=" + line) }

// Extend says that starting or stopping, whichever is going on, is not over
// yet and may take d from now on, whatever the unit's limit is.
func Extend(d time.Duration) error {
	return notify("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(d.Microseconds(), 10))
}

// Extending says Extend(d) again and again until stop is called.
func Extending(d time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		again := time.NewTicker(d / 3)
		defer again.Stop()
		for Extend(d) == nil { // without anybody who listens there is no limit to extend
			select {
			case <-ctx.Done():
				return
			case <-again.C:
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}
