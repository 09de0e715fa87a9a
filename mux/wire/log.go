package wire

// StreamID tags the bytes of a job's output.
type StreamID uint8

// The streams of a job.
const (
	Stdout StreamID = 1
	Stderr StreamID = 2
	Notice StreamID = 3 // said by Waypoint itself, in-band: steps, a cap that was reached
)

// StreamRequest asks for a job's output from Offset on. Offsets count the
// bytes of all streams together, per attempt.
type StreamRequest struct {
	ID      string `json:"id"`
	Attempt int    `json:"attempt,omitempty"` // 0 is the newest
	Offset  int64  `json:"offset,omitempty"`
	Follow  bool   `json:"follow,omitempty"` // live to the end
}

// StreamEvent comes among a job stream's DATA frames: the job at the start,
// at each change of its state, and at last, behind the last byte, its end
// (Last set; without Follow: what there was has been sent). The stream ends
// after it.
type StreamEvent struct {
	Job  Job  `json:"job"`
	Last bool `json:"last,omitempty"`
}
