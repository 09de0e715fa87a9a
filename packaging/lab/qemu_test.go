package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attendant is what obeys inside a machine: it takes a command from a serial
// line, in base64, and answers with exit code and output.
const attendant = `#!/bin/bash
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
cd /root
tar xf /dev/nvme1n1
export HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER=cat TERM=dumb
echo ready >&3
while IFS= read -r line <&3; do
	(eval "$(base64 -d <<<"$line")") >/run/attendant.out 2>/run/attendant.err </dev/null 3>&-
	echo "$? $(base64 -w0 /run/attendant.out). $(base64 -w0 /run/attendant.err)." >&3
done
`

const attendantUnit = `[Unit]
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/attendant
StandardOutput=null
[Install]
WantedBy=graphical.target
`

// onMachines is onEach with a whole machine of some suites, and the newer package in
// its /root. Without hardware to help, a machine is some ten times slower than a lab.
func onMachines(t *testing.T, suites []string, test func(l *lab, p packages)) {
	p := under(t)
	needs(t, map[string]string{"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "mmdebstrap": "mmdebstrap"})
	t.Parallel()
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			test(bootMachine(t, suite, p.new.deb), p)
		})
	}
}

// bootMachine is boot for a whole machine: its kernel is its own, and so are all
// controllers of cgroup v2. The files are in its /root. It has one serial line,
// so its commands wait for each other.
func bootMachine(t *testing.T, suite string, files ...string) *lab {
	t.Helper()
	kernel, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	image, err := image(suite)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "waypoint-lab-") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	payload, socket, console := filepath.Join(dir, "payload"), filepath.Join(dir, "line"), filepath.Join(dir, "console")
	args := []string{"--create", "--file", payload}
	for _, f := range files {
		args = append(args, "--directory", filepath.Dir(f), filepath.Base(f))
	}
	if out, err := command(time.Minute, "tar", args...); err != nil {
		t.Fatalf("pack the files of the machine: %v\n%s", err, out)
	}
	if err := pad(payload); err != nil {
		t.Fatal(err)
	}
	disk := func(id, file string) []string {
		return []string{"-drive", fmt.Sprintf("file=%s,if=none,id=%s,format=raw,snapshot=on", file, id), "-device", fmt.Sprintf("nvme,drive=%[1]s,serial=%[1]s", id)}
	}
	args = []string{
		"-M", "q35,usb=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-append", "root=/dev/nvme0n1 rw rootfstype=ext4 console=ttyS0 quiet panic=-1 systemd.show_status=0 mitigations=off random.trust_cpu=on",
		"-serial", "file:" + console, "-chardev", "socket,id=line,server=on,wait=on,path=" + socket, "-serial", "chardev:line",
	}
	args = append(append(args, disk("root", image)...), disk("payload", payload)...)
	qemu := exec.Command("qemu-system-x86_64", args...)
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() { qemu.Wait() })
	l := &lab{t: t, suite: suite, name: "machine", journal: newJournal()}
	t.Cleanup(func() {
		if t.Failed() && l.shell != nil {
			l.catchUp()
			t.Logf("the journal's end:\n%s", l.journal.tail(80))
		}
		qemu.Process.Kill()
		ended.Wait()
	})
	line, err := dial(socket)
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, stderr.String())
	}
	t.Cleanup(func() { line.Close() })
	s := &serial{line: line, answers: bufio.NewReader(line)}
	if said, err := s.read(time.Now().Add(3 * bound)); said != "ready" {
		text, _ := os.ReadFile(console)
		t.Fatalf("%s does not boot in qemu: %q, %v\n%s\n%s", suite, said, err, text, stderr.String())
	}
	l.shell = s.run
	return l
}

// dial connects to a socket that is about to be there.
func dial(socket string) (net.Conn, error) {
	for deadline := time.Now().Add(bound); ; <-time.After(20 * time.Millisecond) {
		line, err := net.Dial("unix", socket)
		if err == nil || time.Now().After(deadline) {
			return line, err
		}
	}
}

// serial is the line to the attendant.
type serial struct {
	mu      sync.Mutex
	line    net.Conn
	answers *bufio.Reader
}

func (s *serial) read(deadline time.Time) (string, error) {
	if err := s.line.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	text, err := s.answers.ReadString('\n')
	return strings.TrimSpace(text), err
}

// run has the attendant run a command.
func (s *serial) run(ctx context.Context, stdin string, args []string) result {
	s.mu.Lock()
	defer s.mu.Unlock()
	var quoted []string
	for _, a := range args {
		quoted = append(quoted, "'"+strings.ReplaceAll(a, "'", `'\''`)+"'")
	}
	text := strings.Join(quoted, " ")
	if stdin != "" {
		text = "base64 -d <<<" + base64.StdEncoding.EncodeToString([]byte(stdin)) + " | " + text
	}
	if _, err := fmt.Fprintln(s.line, base64.StdEncoding.EncodeToString([]byte(text))); err != nil {
		return result{"", err.Error(), -1}
	}
	deadline, _ := ctx.Deadline()
	answer, err := s.read(deadline)
	fields := strings.Fields(answer)
	if err != nil || len(fields) != 3 {
		return result{"", fmt.Sprintf("the machine answers %q: %v", answer, err), -1}
	}
	var r result
	var errs [3]error
	r.code, errs[0] = strconv.Atoi(fields[0])
	for i, to := range []*string{&r.stdout, &r.stderr} {
		var text []byte
		text, errs[i+1] = base64.StdEncoding.DecodeString(strings.TrimSuffix(fields[i+1], "."))
		*to = strings.TrimSpace(string(text))
	}
	if err := errors.Join(errs[:]...); err != nil {
		return result{"", err.Error(), -1}
	}
	return r
}

// pad makes a file a whole number of megabytes, as a disk has to be.
func pad(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, (info.Size()+1<<20-1)>>20<<20)
}

// kernel is that of Debian's cloud images: disk and file system are built in.
func kernel() (string, error) {
	path := filepath.Join(cache(), "vmlinuz")
	return path, once(path, func(temporary string) error {
		dir := path + ".package"
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		const fetch = `cd "$1"
			package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
			apt-get -o APT::Sandbox::User=root download -q "$package"
			dpkg-deb --fsys-tarfile linux-image-*.deb | tar --extract --wildcards './boot/vmlinuz-*'
			mv boot/vmlinuz-* "$2"`
		if out, err := command(5*time.Minute, "sh", "-euc", fetch, "sh", dir, temporary); err != nil {
			return fmt.Errorf("fetch the kernel for qemu: %w\n%s", err, out)
		}
		return nil
	})
}

// image is a disk with a base and the attendant.
func image(suite string) (string, error) {
	root, err := base(suite)
	if err != nil {
		return "", err
	}
	path := root + ".disk"
	return path, once(path, func(temporary string) error {
		l := &lab{dir: root + ".mounts"}
		if err := l.mount(root); err != nil {
			return err
		}
		defer l.unmount()
		files := map[string]string{"usr/local/sbin/attendant": attendant, "etc/systemd/system/attendant.service": attendantUnit}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(l.root(), name), []byte(text), 0o755); err != nil {
				return err
			}
		}
		wants := filepath.Join(l.root(), "etc/systemd/system/graphical.target.wants")
		if err := os.MkdirAll(wants, 0o755); err != nil {
			return err
		}
		if err := os.Symlink("../attendant.service", filepath.Join(wants, "attendant.service")); err != nil {
			return err
		}
		if err := os.WriteFile(temporary, nil, 0o644); err != nil {
			return err
		}
		if err := unix.Truncate(temporary, 3<<30); err != nil {
			return err
		}
		out, err := command(5*time.Minute, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1", "-d", l.root(), temporary)
		if err != nil {
			return fmt.Errorf("make the disk of %s: %w\n%s", suite, err, out)
		}
		return nil
	})
}
