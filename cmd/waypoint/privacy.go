package main

import "golang.org/x/sys/unix"

// closeToOthers makes this process's memory and environment its own: nobody
// but root can attach a debugger or read /proc/PID/environ, also no other
// process of the same user, and it leaves no core file. A server has the keys
// that sign tokens in memory; an agent its identity key and, where its token
// came by the environment, that as well, which the jobs of an agent without
// --job-user could read (unsetting a variable does not change what the kernel
// shows).
//
// A limit of zero on core files would be milder and is not enough: it closes
// no /proc, a core_pattern that is a pipe is run all the same, and jobs would
// inherit it. A process that is started by this one begins open again. The
// supervisor is left alone: it is given no secret, and writes to files of /proc
// that would be root's.
func closeToOthers() {
	// It fails where there is no such call, and then nothing can be done.
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
