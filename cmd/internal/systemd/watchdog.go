package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Watchdog says that the command is alive, twice in each interval that the
// service manager has set (WATCHDOG_USEC, WATCHDOG_PID), each time only after
// probe has passed: who is silent for a whole interval is killed and started
// anew. It returns when ctx ends, or at once where nobody watches.
//
// A probe has a quarter of the interval, so that one that uses all of it is
// not silent for too long. After one that failed the next comes sooner; one
// that does not return at all has no other beside it. log gets one line when
// probes begin to fail and one when they pass again.
func Watchdog(ctx context.Context, probe func(context.Context) error, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("watchdog cannot be fed", "error", err)
		return
	}
	if interval == 0 {
		return
	}
	var failing error
	for {
		began := time.Now()
		err := within(ctx, interval/4, probe, func(late error) {
			if failing == nil {
				failing = late
				log.Error("watchdog is not fed: a probe fails", "error", late)
			}
		})
		if ctx.Err() != nil {
			return
		}
		wait := interval / 8
		if err == nil {
			if failing != nil {
				failing = nil
				log.Info("watchdog is fed again: the probe passes")
			}
			if err := notify(daemon.SdNotifyWatchdog); err != nil {
				log.Warn("watchdog cannot be fed", "error", err)
			}
			wait = interval/2 - time.Since(began)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// within is the probe's outcome, an error where it took longer than it may;
// failed is told of an error as soon as it is known, and within returns when
// the probe has, or ctx has ended.
func within(ctx context.Context, limit time.Duration, probe func(context.Context) error, failed func(error)) error {
	pctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	outcome := make(chan error, 1)
	go func() { outcome <- probe(pctx) }()
	var err error
	select {
	case err = <-outcome:
		if err != nil && ctx.Err() == nil {
			failed(err)
		}
		return err
	case <-pctx.Done():
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failed(context.Cause(pctx))
	select {
	case <-outcome:
	case <-ctx.Done():
	}
	return context.Cause(pctx)
}
