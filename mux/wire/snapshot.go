package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"time"
)

// SnapshotFormat is the newest format of snapshots that this build knows, and
// the one it makes. A snapshot is a SQLite file with one line behind its last page:
//
//	newline | SnapshotHeader as JSON | " sha256:" and 64 hexadecimal digits | newline
//
// The digits are of every byte before " sha256:". What is behind its last page
// SQLite passes over, so its tools read a snapshot as it is; once they have
// written to it, it is no snapshot any more.
const SnapshotFormat = 1

// maxSeal is the longest line behind the pages.
const maxSeal = 4 << 10

const sealMark = " sha256:"

// SnapshotRequest has no fields.
type SnapshotRequest struct{}

// SnapshotHeader says what a snapshot is of. It comes before the DATA frames of
// the whole file, whose offsets count from 0, and once more in the file's last line.
type SnapshotHeader struct {
	Format   int       `json:"format"`
	Schema   int       `json:"schema"` // version of what is in it
	ServerID string    `json:"server_id"`
	TakenAt  time.Time `json:"taken_at"` // it has what was stored before
	Software string    `json:"software"` // of the server
	Engine   string    `json:"engine"`   // of its store: sqlite or postgres
	Size     int64     `json:"size"`     // bytes of the SQLite file, without the last line
}

// Seal is the last line of a snapshot; sum has been given all before it.
func (h SnapshotHeader) Seal(sum hash.Hash) ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	line := append([]byte{'\n'}, text...)
	sum.Write(line)
	line = append(line, sealMark...)
	line = hex.AppendEncode(line, sum.Sum(nil))
	return append(line, '\n'), nil
}

// SnapshotCheck is given all bytes of a snapshot by Write, and then says
// whether they are one.
type SnapshotCheck struct {
	sum  hash.Hash // of what is before tail
	size int64     // of all
	tail []byte    // at most 2*maxSeal
	head []byte    // the first of all
}

// sqliteMagic is how every SQLite file begins.
const sqliteMagic = "SQLite format 3\x00"

// NewSnapshotCheck checks one snapshot.
func NewSnapshotCheck() *SnapshotCheck { return &SnapshotCheck{sum: sha256.New()} }

// Write never fails.
func (c *SnapshotCheck) Write(p []byte) (int, error) {
	n := len(p)
	c.size += int64(n)
	if missing := len(sqliteMagic) - len(c.head); missing > 0 {
		c.head = append(c.head, p[:min(missing, n)]...)
	}
	if n > maxSeal {
		c.sum.Write(c.tail)
		c.sum.Write(p[:n-maxSeal])
		c.tail, p = c.tail[:0], p[n-maxSeal:]
	}
	c.tail = append(c.tail, p...)
	if over := len(c.tail) - maxSeal; over > maxSeal {
		c.sum.Write(c.tail[:over])
		c.tail = append(c.tail[:0], c.tail[over:]...)
	}
	return n, nil
}

// Header is what the snapshot says of itself, once all of it has been written
// and is as it was made. Otherwise the error is BadUsage, or Conflict where the
// snapshot is of a format that only a newer release knows.
func (c *SnapshotCheck) Header() (SnapshotHeader, error) {
	var h SnapshotHeader
	if string(c.head) != sqliteMagic {
		return h, Errorf(BadUsage, "it is no snapshot").WithHint("name a file that waypoint server snapshot has made")
	}
	at := bytes.LastIndex(c.tail, []byte(sealMark))
	if at < 0 || len(c.tail)-at != len(sealMark)+hex.EncodedLen(sha256.Size)+1 || c.tail[len(c.tail)-1] != '\n' {
		return h, Errorf(BadUsage, "it does not end as a snapshot does: it is cut off, or something else").
			WithHint("name a whole file that waypoint server snapshot has made")
	}
	c.sum.Write(c.tail[:at])
	if said := c.tail[at+len(sealMark) : len(c.tail)-1]; hex.EncodeToString(c.sum.Sum(nil)) != string(said) {
		return h, Errorf(BadUsage, "it is damaged: its checksum is not that of its bytes").WithHint("use another snapshot, or copy this one again")
	}
	begin := bytes.LastIndexByte(c.tail[:at], '\n')
	if begin < 0 {
		return h, Errorf(BadUsage, "its last line has no beginning")
	}
	if err := json.Unmarshal(c.tail[begin:at], &h); err != nil {
		return h, Errorf(BadUsage, "its last line cannot be read: %v", err)
	}
	if h.Format > SnapshotFormat {
		return h, Errorf(Conflict, "it has the format %d and was made by %s; this waypoint knows formats up to %d", h.Format, h.Software, SnapshotFormat).
			WithHint("use that release, or a newer one")
	}
	if h.Format < 1 || h.Size != c.size-int64(len(c.tail)-begin) {
		return h, Errorf(BadUsage, "its last line does not fit to what is before it")
	}
	return h, nil
}
