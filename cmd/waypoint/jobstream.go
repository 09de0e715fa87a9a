package main

import (
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
)

// jobStream is `waypoint job stream`.
type jobStream struct {
	ID         string `arg:"" help:"The job."`
	Offset     int64  `placeholder:"N" help:"Begin behind so many bytes of both streams together."`
	Follow     bool   `default:"true" negatable:"" help:"Go on live to the end; with --no-follow only what there is."`
	Timestamps bool   `help:"The time in front of each line."`
	Attempt    int    `placeholder:"N" help:"The output of this attempt; default the newest."`
}

func (*jobStream) Help() string {
	return `The job's stdout goes to stdout and its stderr to stderr; with --json each chunk is one object on a line of its own.
It exits as the job's command did (128+N for signal N), 124 when it timed out, 126 not executable, 127 not found,
125 when the job ended in another way; with --no-follow 0 while it has not ended. Ctrl-C leaves the job alone.`
}

// chunk is one line of `job stream --json`. Data is text where the bytes are
// UTF-8, else DataBase64 has them.
type chunk struct {
	JobID      string    `json:"job_id"`
	Attempt    int       `json:"attempt"`
	Offset     int64     `json:"offset"`
	Time       time.Time `json:"time"`
	Stream     string    `json:"stream"` // stdout | stderr | notice
	Data       *string   `json:"data,omitempty"`
	DataBase64 []byte    `json:"data_base64,omitempty"`
}

func (c *jobStream) Run(a *app) error {
	if c.Offset < 0 || c.Attempt < 0 {
		return wire.Errorf(wire.BadUsage, "parse arguments: --offset and --attempt cannot be negative")
	}
	conn, err := a.connect()
	if err != nil {
		return err
	}
	defer conn.close()
	var job wire.Job
	if a.JSON {
		// Each chunk names its job and attempt, and what has been put out comes
		// before the first event.
		ctx, cancel := a.ask()
		job, err = conn.Job(ctx, c.ID)
		cancel()
		if err != nil {
			return fmt.Errorf("stream job: %w", err)
		}
	}
	write := c.writer(a, &job)
	req := wire.StreamRequest{ID: c.ID, Attempt: c.Attempt, Offset: c.Offset, Follow: c.Follow}
	for item, err := range conn.Stream(a.ctx, req) {
		if err != nil {
			return fmt.Errorf("stream job: %w", err)
		}
		if item.Event != nil {
			job = item.Event.Job
		} else if err := write(item.Data); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
	if !job.State.Ended() {
		return nil
	}
	return a.jobEnd(job)
}

// writer is how the flags want the output.
func (c *jobStream) writer(a *app, job *wire.Job) func(wire.Data) error {
	if a.JSON {
		return func(d wire.Data) error {
			line := chunk{JobID: job.ID, Attempt: job.Attempt, Offset: d.Offset, Time: d.Time.UTC(), Stream: streamName(d.Stream)}
			if c.Attempt > 0 {
				line.Attempt = c.Attempt
			}
			if text := string(d.Bytes); utf8.ValidString(text) {
				line.Data = &text
			} else {
				line.DataBase64 = d.Bytes
			}
			return output.Line(a.stdout, line)
		}
	}
	target := func(id wire.StreamID) io.Writer {
		if id == wire.Stdout {
			return a.stdout
		}
		return a.stderr
	}
	if !c.Timestamps {
		return func(d wire.Data) error {
			_, err := target(d.Stream).Write(d.Bytes)
			return err
		}
	}
	stamps := map[wire.StreamID]*output.Stamper{}
	return func(d wire.Data) error {
		if stamps[d.Stream] == nil {
			stamps[d.Stream] = output.NewStamper(target(d.Stream))
		}
		return stamps[d.Stream].Write(d.Time, d.Bytes)
	}
}

func streamName(id wire.StreamID) string {
	switch id {
	case wire.Stdout:
		return "stdout"
	case wire.Stderr:
		return "stderr"
	}
	return "notice"
}
