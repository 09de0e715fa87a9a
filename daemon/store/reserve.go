package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waypointd/waypoint/mux/wire"
)

// The reserve is room of the file system that is kept for what is under way:
// endings, leases, output of jobs that run, decisions about runners. While less
// is free no job is queued or handed out and no blob taken. SQLite only: the
// disk of another database is not seen from here.

const (
	reserveMost  = 64 << 20 // of the reserve that nobody has set, in bytes
	reserveShare = 100      // and at most one part in so many of the file system

	// reserveLook is how long a look at the file system holds; a refusal looks
	// again, so that no one is refused who would find room.
	reserveLook = 200 * time.Millisecond
	reservePoll = time.Second // between looks while there is too little, for what waits
)

// Room is how much of the file system is free, and how large it is, in bytes.
type Room struct{ Free, Size int64 }

type reserve struct {
	set    atomic.Int64 // bytes; 0: by the size of the file system, negative: none
	looked atomic.Int64 // when, in nanoseconds of the store's own clock
	short  atomic.Bool  // less than it was free at the last look
	free   atomic.Int64 // at the last look
	size   atomic.Int64 // of the reserve, as of then

	looking sync.Mutex // held by await's look; before mu

	mu   sync.Mutex
	next *time.Timer // the next look of await, one for all; nil before the first; guarded by mu
}

// SetReserve sets how much room is kept, in bytes: 0 is the smaller of 64 MiB and
// a hundredth of the file system, a negative number none.
func (s *Store) SetReserve(bytes int64) {
	s.reserve.set.Store(bytes)
	s.look()
}

// Reserved says how much is kept, none as 0, how much was free when that was
// looked at last, and whether that is too little for new work.
func (s *Store) Reserved() (size, free int64, short bool) {
	s.checkReserve(false)
	return s.reserve.size.Load(), s.reserve.free.Load(), s.reserve.short.Load()
}

// isShort reports whether there is no room for new work.
func (s *Store) isShort() bool {
	return s.checkReserve(false) && s.checkReserve(true)
}

// newWork is nil, or why no new work is taken.
func (s *Store) newWork() error {
	if !s.isShort() {
		return nil
	}
	return wire.Errorf(wire.Unavailable, "no space left for new work: %s are free for the store (%s), and %s are kept for what is under way",
		bytesText(s.reserve.free.Load()), s.engine.describe(), bytesText(s.reserve.size.Load())).
		WithHint("make room, or set store_reserve; what is queued and what runs is safe")
}

// checkReserve is whether there was too little at the last look, or with now, and
// where that is too old, at one of this moment.
func (s *Store) checkReserve(now bool) bool {
	if s.cfg.Free == nil || s.reserve.set.Load() < 0 {
		return false
	}
	if now || int64(time.Since(s.began))-s.reserve.looked.Load() >= int64(reserveLook) {
		s.look()
	}
	return s.reserve.short.Load()
}

// look looks at the file system. One whose room cannot be told has enough: a
// write will say otherwise.
func (s *Store) look() {
	r := &s.reserve
	if s.cfg.Free == nil {
		return
	}
	want, room := r.set.Load(), Room{}
	if want >= 0 {
		var err error
		if room, err = s.cfg.Free(); err != nil {
			s.cfg.Logger.Debug("room of the store is not known", "error", err)
			want = -1
		} else if want == 0 {
			want = min(reserveMost, room.Size/reserveShare)
		}
	}
	r.looked.Store(int64(time.Since(s.began)))
	r.free.Store(room.Free)
	r.size.Store(max(want, 0))
	// What has become short is enough again only with a little more, so that
	// one who is at the edge does not hear of it all the time.
	switch {
	case want > 0 && room.Free < want:
		if r.short.CompareAndSwap(false, true) {
			s.cfg.Logger.Error("store has its reserve left: no new work is taken", "store", s.engine.describe(),
				"free", bytesText(room.Free), "reserve", bytesText(want))
			s.roomChanged()
			s.await()
		}
	case want <= 0 || room.Free >= want+want/8:
		if r.short.CompareAndSwap(true, false) {
			s.saysRoom()
			s.Kick() // what is queued was not handed out
		}
	}
}

// await looks again after a time, until there is enough. Who asks for it while
// somebody waits already moves that look.
func (s *Store) await() {
	r := &s.reserve
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next != nil {
		r.next.Reset(reservePoll)
		return
	}
	r.next = time.AfterFunc(reservePoll, func() {
		r.looking.Lock()
		defer r.looking.Unlock()
		select {
		case <-s.quit:
			return
		default:
		}
		s.look()
		if r.short.Load() {
			s.await()
		}
	})
}

// saysRoom says that there is room again, unless something is still short of it.
func (s *Store) saysRoom() {
	if s.fullAt.Load() == nil && !s.reserve.short.Load() {
		s.cfg.Logger.Info("store has room again", "store", s.engine.describe())
	}
	s.roomChanged()
}

// fileSystem is the room of the file system that a directory is on.
func fileSystem(dir string) (Room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Room{}, err
	}
	return Room{Free: int64(st.Bavail) * st.Bsize, Size: int64(st.Blocks) * st.Bsize}, nil
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
