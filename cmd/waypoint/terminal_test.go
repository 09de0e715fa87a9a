package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// terminal NAME PROGRAM [ARG...]: starts a program on a terminal of its own,
// as a person would; NAME.out is what the screen has shown.
func terminal(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "terminal NAME PROGRAM [ARG...]")
	name := args[0]
	near, far, err := openTerminal()
	ts.Check(err)
	screen, err := os.OpenFile(ts.MkAbs(name+".out"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(name+".err"), nil, 0o600))
	p := &process{cmd: program(ts, args[1:]), done: make(chan struct{}), terminal: near}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = far, far, far
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(p.cmd.Start())
	far.Close()
	shown := make(chan struct{})
	go func() {
		// Ends with an error when the program, the last at the far end, has.
		io.Copy(screen, near)
		screen.Close()
		close(shown)
	}()
	go func() {
		p.err = p.cmd.Wait()
		<-shown
		near.Close()
		close(p.done)
	}()
	of(ts).add(ts, name, p)
}

// type NAME TEXT: types on a program's terminal; TEXT is as in a Go string.
func typeText(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "type NAME TEXT")
	text, err := strconv.Unquote(`"` + args[1] + `"`)
	ts.Check(err)
	_, err = io.WriteString(of(ts).get(ts, args[0]).terminal, text)
	ts.Check(err)
}

func openTerminal() (near, far *os.File, err error) {
	near, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	if err = unix.IoctlSetPointerInt(int(near.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		var n uint32
		if n, err = unix.IoctlGetUint32(int(near.Fd()), unix.TIOCGPTN); err == nil {
			far, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
		}
	}
	if err != nil {
		near.Close()
	}
	return near, far, err
}

// notify: a service manager that writes down what it is told in notify.log,
// and says so in the environment.
func notifySocket(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs("notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	log, err := os.OpenFile(ts.MkAbs("notify.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	ts.Check(err)
	ts.Setenv("NOTIFY_SOCKET", path)
	ts.Defer(func() { conn.Close() })
	go func() {
		defer log.Close()
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(log, "%s\n", buf[:n])
		}
	}()
}
