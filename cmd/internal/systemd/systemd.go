// Package systemd is what the service manager and a command say to each
// other: the sockets it hands over, and when the command is ready. Without a
// service manager there are no sockets and saying something does nothing.
package systemd

import (
	"fmt"
	"net"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
)

// Listener is a socket that was handed over.
type Listener struct {
	net.Listener
	Name string // FileDescriptorName= of its unit
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

// Ready says that the command does its work from here on.
func Ready() error { return notify(daemon.SdNotifyReady) }

// Stopping says that the command is coming to its end.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

// Status says in one line what the command is doing.
func Status(line string) error { return notify("STATUS=" + line) }

func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}
