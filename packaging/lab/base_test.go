package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// suites are the Debians that are booted: systemd 252 and 257.
var suites = []string{"bookworm", "trixie"}

// contents are the packages of a base besides the essential ones.
var contents = []string{
	"adduser", "bash-completion", "dbus", "init-system-helpers", "iproute2", "libpam-systemd", "man-db", "procps", "rpm", "systemd", "systemd-sysv",
}

// hooks make of a fresh Debian one that boots without a network, a clock or a
// disk of its own. What writes to the disk for its own sake is left out.
var hooks = []string{
	`rm -f "$1"/etc/machine-id; touch "$1"/etc/machine-id; rm -f "$1"/etc/hostname`,
	`chroot "$1" systemctl mask -q apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer console-getty.service systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-firstboot.service systemd-networkd.service systemd-networkd.socket systemd-timesyncd.service getty@tty1.service serial-getty@ttyS0.service systemd-udev-settle.service`,
	`mkdir -p "$1"/etc/systemd/journald.conf.d; printf "[Journal]\nStorage=volatile\nRateLimitBurst=0\nForwardToConsole=no\n" >"$1"/etc/systemd/journald.conf.d/lab.conf`,
	`rm -f "$1"/etc/dpkg/dpkg.cfg.d/docker* "$1"/var/lib/man-db/auto-update; echo force-unsafe-io >"$1"/etc/dpkg/dpkg.cfg.d/lab`,
	`rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*`,
}

// base is the root file system of a suite, made once for a list of packages
// and kept. Runs beside each other make it once.
func base(suite string) (string, error) {
	recipe := strings.Join(append(append([]string{"1", suite}, contents...), hooks...), "\n")
	dir := filepath.Join(cache(), fmt.Sprintf("%s-%x", suite, sha256.Sum256([]byte(recipe)))[:len(suite)+13])
	return dir, once(dir, func(temporary string) error {
		args := append([]string{"--quiet", "--variant=apt", "--include=" + strings.Join(contents, ",")}, proxies()...)
		for _, h := range hooks {
			args = append(args, "--customize-hook="+h)
		}
		out, err := command(10*time.Minute, "mmdebstrap", append(args, suite, temporary, mirror())...)
		if err != nil {
			return fmt.Errorf("make the base of %s: %w\n%s", suite, err, out)
		}
		return nil
	})
}

// mirror is the Debian archive that this machine's apt uses: all that a build
// machine can reach may be that.
func mirror() string {
	out, err := command(time.Minute, "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Component: main")
	if err == nil {
		for line := range strings.Lines(out) {
			if site, release, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasSuffix(strings.TrimSuffix(site, "/"), "/debian") && release != "" {
				return site
			}
		}
	}
	return "http://deb.debian.org/debian"
}

// proxies are what this machine's apt is told of its way to the archive;
// mmdebstrap's own apt does not read it.
func proxies() []string {
	var options []string
	if out, err := command(time.Minute, "apt-config", "dump"); err == nil {
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "Acquire::http") {
				options = append(options, "--aptopt="+strings.TrimSpace(line))
			}
		}
	}
	return options
}

func cache() string {
	if dir := os.Getenv("LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/waypoint-lab"
}

// once makes what is to be at path under a temporary name, unless it is there.
// Who comes meanwhile, also in another process, waits for it.
func once(path string, make func(temporary string) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	temporary := path + ".new"
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	if err := make(temporary); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// command runs a program of the host and returns what it says.
func command(limit time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil && ctx.Err() != nil {
		err = errors.Join(err, fmt.Errorf("%s took more than %s", name, limit))
	}
	return string(out), err
}

// needs fails the test where a program is missing, with the package of Debian
// that has it.
func needs(t *testing.T, programs map[string]string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("labs are booted by root only: run make test-system as root")
	}
	for program, from := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%s is not installed: apt-get install %s", program, from)
		}
	}
}

// packages are the packages under test: two versions of the same tree.
type packages struct {
	old, new version
}

type version struct {
	number   string
	deb, rpm string // files
}

// labeled are the packages that LAB_PACKAGES names: DIR/old and DIR/new, each
// with a .deb, a .rpm, and its version in a file of that name.
var labeled = sync.OnceValues(func() (packages, error) {
	dir := os.Getenv("LAB_PACKAGES")
	var p packages
	for name, v := range map[string]*version{"old": &p.old, "new": &p.new} {
		for pattern, file := range map[string]*string{"*_amd64.deb": &v.deb, "*.x86_64.rpm": &v.rpm} {
			found, err := filepath.Glob(filepath.Join(dir, name, pattern))
			if err != nil || len(found) != 1 {
				return p, fmt.Errorf("LAB_PACKAGES: %d files %s in %s/%s, and not one: make test-system builds them", len(found), pattern, dir, name)
			}
			*file = found[0]
		}
		number, err := os.ReadFile(filepath.Join(dir, name, "version"))
		if err != nil {
			return p, err
		}
		v.number = strings.TrimSpace(string(number))
	}
	return p, nil
})

// under returns the packages under test, or skips the test where there are none.
func under(t *testing.T) packages {
	t.Helper()
	if os.Getenv("LAB_PACKAGES") == "" {
		t.Skip("SKIPPED: the packages are tested as root on booted systems: make test-system")
	}
	p, err := labeled()
	if err != nil {
		t.Fatal(err)
	}
	return p
}
