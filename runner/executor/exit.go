package executor

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how a command ended.
type Exit struct {
	Code   int    // where it ended by itself
	Signal string // "SIGKILL": where a signal ended it
	Err    error  // where that could not be learned
}

// Success reports an exit with code 0.
func (x Exit) Success() bool { return x.Err == nil && x.Signal == "" && x.Code == 0 }

func exitOf(ws syscall.WaitStatus) Exit {
	if ws.Signaled() {
		return Exit{Signal: signalName(ws.Signal())}
	}
	return Exit{Code: ws.ExitStatus()}
}

func signalName(s syscall.Signal) string {
	if n := unix.SignalName(s); n != "" {
		return n
	}
	return fmt.Sprintf("SIG%d", int(s))
}

// Usage is what a tree took.
type Usage struct {
	CPU    time.Duration // of all processes
	MaxRSS int64         // bytes: the tree's peak where memory is accounted for it, else the largest process's
	OOM    bool          // the kernel killed a process of it for want of memory
}

func durationOf(tv syscall.Timeval) time.Duration {
	return time.Duration(tv.Sec)*time.Second + time.Duration(tv.Usec)*time.Microsecond
}

// add takes in what wait4 said of a process and the children it waited for.
func (u *Usage) add(ru *syscall.Rusage) {
	if ru == nil {
		return
	}
	u.CPU += durationOf(ru.Utime) + durationOf(ru.Stime)
	u.MaxRSS = max(u.MaxRSS, ru.Maxrss<<10)
}
