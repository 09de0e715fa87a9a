package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// serverStatus is `waypoint server status`.
type serverStatus struct{}

func (serverStatus) Run(a *app) error {
	return a.withServer(func(ctx context.Context, conn *connection) error {
		s, err := conn.ServerStatus(ctx)
		if err != nil {
			return fmt.Errorf("ask for status: %w", err)
		}
		return a.print(s, func(w io.Writer) error {
			f := new(output.Fields)
			f.Add("ID", s.ID)
			f.Add("Version", s.Version)
			f.Add("Up for", (time.Duration(s.UptimeSeconds) * time.Second).String())
			f.Add("Problem", s.Problem)
			f.Add("Store", s.Store)
			f.Add("Room", roomOf(s))
			f.Add("State directory", s.StateDir)
			f.Add("Listening on", listenerWords(s.Listeners))
			f.Add("Runners", output.Counts(s.Runners))
			f.Add("Runners online", strconv.Itoa(s.RunnersOnline))
			f.Add("Jobs", output.Counts(s.Jobs))
			f.Add("Queue depth", strconv.Itoa(s.QueueDepth))
			f.Add("TLS fingerprint", s.Fingerprint)
			f.Add("Certificate expires", instant(s.CertExpiry))
			f.Add("Limits met", limitWords(s.Limits))
			f.Add("Protocol", fmt.Sprintf("%d to %d", s.ProtocolMin, s.ProtocolMax))
			return f.Write(w)
		})
	})
}

// listenerWords are the addresses, each with whom it is for where that is not
// said by its network.
func listenerWords(listeners []wire.Listener) string {
	words := make([]string, len(listeners))
	for i, l := range listeners {
		words[i] = l.Address
		if l.Kind != wire.ForTCP {
			words[i] += " (" + string(l.Kind) + ")"
		}
	}
	return strings.Join(words, ", ")
}

// limitWords are the limits that somebody has met; all are in the JSON.
func limitWords(limits []wire.PeerLimit) string {
	var words []string
	for _, l := range limits {
		if l.Times > 0 {
			words = append(words, fmt.Sprintf("%s = %d, %d times, last at %s", l.Name, l.Most, l.Times, instant(l.Last)))
		}
	}
	return strings.Join(words, "; ")
}

// roomOf is how the store is off for room, "" where that is not known and all is well.
func roomOf(s wire.ServerStatus) string {
	text := ""
	if s.StoreReserve > 0 {
		text = fmt.Sprintf("%s free, %s of it reserved", output.Bytes(s.StoreFree), output.Bytes(min(s.StoreReserve, s.StoreFree)))
	}
	what := ""
	switch s.StoreProblem {
	case wire.StoreFull:
		what = "full, jobs and output wait for room"
	case wire.StoreReserve:
		what = "no new work is taken until there is more"
	}
	if text != "" && what != "" {
		text += "; "
	}
	return text + what
}
