// Package lab tests what the packages make of a host: real systemd, the units,
// the sockets, the maintainer scripts, through the programs that an
// administrator uses. Unit tests cannot: who may open a socket, what survives
// an upgrade and who is restarted is decided by systemd, dpkg and rpm.
//
//	make test-system                                # builds the packages, runs all of it
//	make test-system RUN='TestUpgrade.*/trixie'     # some of it
//	make test-system LONG=1 RUN='TestPowerCut|TestMachine' # in their long form
//
// # Labs
//
// A lab is a Debian that is booted for one test: systemd 252 (bookworm) or 257
// (trixie) in systemd-nspawn, over a base that mmdebstrap makes once and that
// is kept in LAB_CACHE (/var/cache/waypoint-lab). What a test changes is in a
// file system in memory, which goes with it. Each lab has a cgroup of its own:
// labs that share one would see units of the same name in each other.
//
// Inside, PID 1, cgroup.kill, sandboxes, sockets and the journal are real. Limits
// of memory, CPU and processes need the controllers of cgroup v2, which a host may
// have bound to v1, and a clock of one's own needs a kernel of one's own. What takes
// those (TestMachine) runs in qemu, without KVM, with the kernel of Debian's cloud images,
// which needs no initrd. All that can be made in a lab is made in one, which is then the
// machine's disk. In the short form there is one machine, with the newer systemd.
//
// A disk of a lab's own is an ext4 with a journal over a file. The power is cut
// by ending that file system as it stands (EXT4_IOC_SHUTDOWN, without its
// journal's last entries) and killing PID 1; what it had not written is not there
// at the next boot, as on a real disk, and a boot takes a second.
//
// # Waiting
//
// No test sleeps. A command waits by itself (systemctl start, job wait), or
// await asks again with each line that the journal gets. The times in here
// are bounds of what is hung, never expectations. A machine of qemu may be slower than
// any bound: it says every few seconds on its console that it lives, and only one
// that is silent for minutes is given up; its console is shown when the test fails.
//
// # What it needs
//
// Root, and systemd-container mmdebstrap qemu-system-x86 e2fsprogs of Debian.
// Without LAB_PACKAGES, the directory with the packages, the tests are
// skipped; with it, what is missing is a failure.
package lab
