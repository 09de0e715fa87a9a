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
// line, in base64, and answers with exit code and output. Meanwhile it says on the
// console how the machine is, so that a slow one can be told from a dead one.
const attendant = `#!/bin/bash
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
cd /root
export HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER=cat TERM=dumb
while sleep 5; do
	read -r up _ </proc/uptime; read -r load </proc/loadavg; read -r name </run/attendant.command
	printf 'alive for %s s, load %s, doing: %s\r\n' "$up" "$load" "${name:0:200}" >/dev/ttyS0
done 2>/dev/null 3>&- &
echo ready >&3
while IFS= read -r line <&3; do
	text=$(base64 -d <<<"$line")
	echo "${text//$'\n'/ }" >/run/attendant.command
	(eval "$text") >/run/attendant.out 2>/run/attendant.err </dev/null 3>&-
	code=$?
	echo nothing >/run/attendant.command
	echo "$code $(base64 -w0 /run/attendant.out). $(base64 -w0 /run/attendant.err)." >&3
done
`

const attendantUnit = `[Unit]
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/attendant
StandardOutput=null
OOMScoreAdjust=-1000
[Install]
WantedBy=graphical.target
`

// A machine's time runs as it can: without hardware to help it is some ten times slower
// than a lab, and that again by what else its host does. So whether it works is seen by
// its console, where something comes every few seconds; only a machine that is silent
// is given up, and what it is asked to do may take long.
const (
	silence         = 2 * time.Minute
	machinePatience = 6 * bound
)

// idle is what a boot does besides, for nobody here.
var idle = []string{
	"modprobe@.service", "systemd-modules-load.service", "systemd-logind.service", "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
}

// onMachines runs a test on a whole machine of each of some suites: its kernel is its
// own, and so are its clock and all controllers of cgroup v2. What setup makes of a
// fresh lab is on its disk when it boots.
func onMachines(t *testing.T, suites []string, setup func(l *lab, p packages), test func(l *lab)) {
	p := under(t)
	needs(t, map[string]string{
		"systemd-nspawn": "systemd-container", "mmdebstrap": "mmdebstrap", "nsenter": "util-linux", "mke2fs": "e2fsprogs", "qemu-system-x86_64": "qemu-system-x86",
	})
	t.Parallel()
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			// The only one begins at once: it is what takes the longest.
			if len(suites) > 1 {
				t.Parallel()
			}
			dir, err := os.MkdirTemp("", "waypoint-lab-") // short, for the socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			disk := filepath.Join(dir, "disk")
			l := boot(t, suite)
			setup(l, p)
			l.powerOff()
			if err := l.image(disk); err != nil {
				t.Fatal(err)
			}
			l.journal = newJournal() // what is shown of a failure is the machine's
			test(bootMachine(t, suite, dir, disk))
		})
	}
}

// image makes a disk of the file system of a lab that is down, with the attendant.
func (l *lab) image(disk string) error {
	for name, text := range map[string]string{"usr/local/sbin/attendant": attendant, "etc/systemd/system/attendant.service": attendantUnit} {
		if err := os.WriteFile(filepath.Join(l.root(), name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	system := filepath.Join(l.root(), "etc/systemd/system")
	links := map[string]string{"graphical.target.wants/attendant.service": "../attendant.service"}
	for _, unit := range idle {
		links[unit] = "/dev/null"
	}
	for name, to := range links {
		path := filepath.Join(system, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(to, path); err != nil {
			return err
		}
	}
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Truncate(disk, 3<<30); err != nil {
		return err
	}
	out, err := command(machinePatience, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1", "-d", l.root(), disk)
	if err != nil {
		return fmt.Errorf("make the disk of a machine: %w\n%s", err, out)
	}
	return nil
}

// bootMachine boots a disk. The machine has one serial line, so its commands wait
// for each other, and its journal is on its console.
func bootMachine(t *testing.T, suite, dir, disk string) *lab {
	t.Helper()
	kernel, err := kernel()
	if err != nil {
		t.Fatal(err)
	}
	socket, console := filepath.Join(dir, "line"), filepath.Join(dir, "console")
	qemu := exec.Command("qemu-system-x86_64",
		"-M", "q35,usb=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-append", "root=/dev/nvme0n1 rw rootfstype=ext4 console=ttyS0 quiet panic=-1 systemd.show_status=0 systemd.default_timeout_start_sec=600 systemd.journald.forward_to_console=1 mitigations=off random.trust_cpu=on",
		"-serial", "file:"+console, "-chardev", "socket,id=line,server=on,wait=on,path="+socket, "-serial", "chardev:line",
		"-drive", "file="+disk+",if=none,id=root,format=raw,cache=unsafe", "-device", "nvme,drive=root,serial=root",
	)
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	s := &serial{console: console, ended: make(chan struct{}), answers: make(chan string)}
	go func() { qemu.Wait(); close(s.ended) }()
	l := &lab{t: t, suite: suite, name: "machine", journal: newJournal(), patience: machinePatience, shell: s.run}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the machine's console:\n%s\n%s", s.tail(200), stderr.String())
		}
		if dir := os.Getenv("LAB_KEEP_JOURNAL"); dir != "" {
			name := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+".console")
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(name, []byte(s.tail(1<<30)), 0o644)); err != nil {
				t.Errorf("keep the console: %v", err)
			}
		}
		qemu.Process.Kill()
		<-s.ended
	})
	if s.line, err = dial(socket); err != nil {
		t.Fatalf("qemu: %v", err)
	}
	t.Cleanup(func() { s.line.Close() })
	go s.listen()
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 2*machinePatience)
	defer cancel()
	if said, err := s.answer(ctx); said != "ready" {
		t.Fatalf("%s does not boot in qemu: %q, %v", suite, said, err)
	}
	t.Logf("booted in %s", time.Since(began).Round(time.Second))
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

// serial is the line to the attendant, and the machine's console.
type serial struct {
	console string        // a file
	ended   chan struct{} // closed when the machine is no more

	mu      sync.Mutex // held by who waits for an answer
	line    net.Conn
	answers chan string
	lost    error // why there are no more answers
}

// listen takes what the attendant says until the line is closed.
func (s *serial) listen() {
	from := bufio.NewReader(s.line)
	for {
		text, err := from.ReadString('\n')
		if err != nil {
			return
		}
		select {
		case s.answers <- strings.TrimSpace(text):
		case <-s.ended:
			return
		}
	}
}

// answer returns what the attendant says next. Whoever has not waited for it to the
// end leaves it to the next, so the line is lost then.
func (s *serial) answer(ctx context.Context) (string, error) {
	if s.lost != nil {
		return "", s.lost
	}
	look := time.NewTicker(time.Second)
	defer look.Stop()
	size, heard := int64(-1), time.Now()
	for {
		select {
		case text := <-s.answers:
			return text, nil
		case <-s.ended:
			s.lost = errors.New("the machine has ended")
		case <-ctx.Done():
			s.lost = fmt.Errorf("the machine lives, its console has said something %s ago, but it does not answer: %w", time.Since(heard).Round(time.Second), ctx.Err())
		case <-look.C:
			if info, err := os.Stat(s.console); err == nil && info.Size() != size {
				size, heard = info.Size(), time.Now()
			}
			if time.Since(heard) > silence {
				s.lost = fmt.Errorf("the machine is dead: its console has been silent for %s", silence)
			}
		}
		if s.lost != nil {
			return "", s.lost
		}
	}
}

// tail is the end of what the console has shown.
func (s *serial) tail(lines int) string {
	text, err := os.ReadFile(s.console)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.ReplaceAll(strings.TrimSpace(string(text)), "\r", ""), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
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
	if s.lost == nil {
		if _, err := fmt.Fprintln(s.line, base64.StdEncoding.EncodeToString([]byte(text))); err != nil {
			return result{"", err.Error(), -1}
		}
	}
	answer, err := s.answer(ctx)
	if err != nil {
		return result{"", err.Error(), -1}
	}
	fields := strings.Fields(answer)
	if len(fields) != 3 {
		return result{"", fmt.Sprintf("the machine answers %q", answer), -1}
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
