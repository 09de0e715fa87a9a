package executor

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Commands of this process's own user get none of the capabilities that it has
// for running them as another one: they could become root.
func TestNoAmbientCapabilities(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root has capabilities to pass on")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with what it has become
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var was, is [2]unix.CapUserData
		if err := unix.Capget(&header, &was[0]); err != nil {
			t.Error(err)
			return
		}
		was[0].Inheritable |= 1 << unix.CAP_SETUID
		if err := unix.Capset(&header, &was[0]); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SETUID, 0, 0); err != nil {
			t.Error(err)
			return
		}
		if err := (*User)(nil).enlist(); err != nil {
			t.Error(err)
			return
		}
		set, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, unix.CAP_SETUID, 0, 0)
		if err != nil || set != 0 {
			t.Errorf("a command gets CAP_SETUID whatever it executes: %d, %v", set, err)
		}
		if err := unix.Capget(&header, &is[0]); err != nil || is[0].Inheritable != 0 || is[0].Permitted != was[0].Permitted {
			t.Errorf("capabilities were %+v, are %+v, %v", was, is, err)
		}
	}()
	<-done
}
