package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Command is one program to run.
type Command struct {
	Argv  []string // Argv[0] is looked up in Env's PATH, relative to Dir
	Env   []string // the whole environment
	Dir   string   // working directory
	Stdin string   // a file; empty is /dev/null
}

// StartError says why a command did not start, and the code a shell would
// give: 127 not found, 126 found but not to be executed, 0 where there is none
// as it was not the command's fault.
type StartError struct {
	Code int
	Text string
}

func (e *StartError) Error() string { return e.Text }

// resolve finds the program of a command as a shell does.
func (c *Command) resolve() (string, error) {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return "", &StartError{Code: 127, Text: "the command is empty"}
	}
	if fi, err := os.Stat(c.Dir); err != nil {
		return "", &StartError{Text: fmt.Sprintf("open working directory %s: %v", c.Dir, cause(err))}
	} else if !fi.IsDir() {
		return "", &StartError{Text: fmt.Sprintf("open working directory %s: it is no directory", c.Dir)}
	} else if err := access(c.Dir); err != nil {
		return "", &StartError{Text: fmt.Sprintf("open working directory %s: %v", c.Dir, err)}
	}
	name := c.Argv[0]
	if strings.Contains(name, "/") {
		path := c.abs(name)
		if err := executable(path); err != nil {
			return "", startError(name, err)
		}
		return path, nil
	}
	refused := error(nil) // the first that was there, but not to be executed
	for dir := range strings.SplitSeq(getenv(c.Env, "PATH"), ":") {
		path := filepath.Join(c.abs(dir), name)
		err := executable(path)
		if err == nil {
			return path, nil
		}
		// As a shell: what is no file, or lies in a directory that may not be
		// searched, is not there.
		if fi, serr := os.Stat(path); refused == nil && serr == nil && !fi.IsDir() {
			refused = err
		}
	}
	if refused != nil {
		return "", startError(name, refused)
	}
	return "", &StartError{Code: 127, Text: fmt.Sprintf("command not found: %s", name)}
}

func (c *Command) abs(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.Dir, path)
}

// executable says why path cannot be executed, nil if it can.
func executable(path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return cause(err)
	}
	if fi.IsDir() {
		return syscall.EISDIR
	}
	return access(path)
}

// startError is the StartError of a program that cannot be executed.
func startError(name string, err error) *StartError {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return &StartError{Code: 127, Text: fmt.Sprintf("command not found: %s", name)}
	case errors.Is(err, syscall.EISDIR):
		return &StartError{Code: 126, Text: fmt.Sprintf("%s is a directory", name)}
	case errors.Is(err, syscall.E2BIG):
		return &StartError{Code: 126, Text: fmt.Sprintf("start %s: its arguments and environment are too long", name)}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EPERM),
		errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ELIBBAD), errors.Is(err, syscall.ETXTBSY), errors.Is(err, syscall.ENAMETOOLONG):
		return &StartError{Code: 126, Text: fmt.Sprintf("%s cannot be executed: %v", name, cause(err))}
	}
	return &StartError{Text: fmt.Sprintf("start %s: %v", name, cause(err))}
}

// execError is the StartError of an exec of path that failed.
func execError(name, path string, err error) *StartError {
	if errors.Is(err, syscall.ENOENT) && executable(path) == nil {
		return &StartError{Code: 127, Text: fmt.Sprintf("the interpreter of %s was not found", name)}
	}
	return startError(name, err)
}

// openStdin opens a command's standard input; nil where it has none.
func (c *Command) openStdin() (*os.File, error) {
	if c.Stdin == "" {
		return nil, nil
	}
	f, err := os.Open(c.Stdin)
	if err != nil {
		return nil, &StartError{Text: fmt.Sprintf("open standard input: %v", err)}
	}
	return f, nil
}

// launch calls exec with the program that was resolved, and for a script
// without an interpreter line with sh, as execvp does.
func (c *Command) launch(path string, exec func(path string, argv []string) error) error {
	err := exec(path, c.Argv)
	if errors.Is(err, syscall.ENOEXEC) {
		err = exec("/bin/sh", append([]string{"sh", path}, c.Argv[1:]...))
	}
	return err
}

// getenv is a variable's value, the last one as in exec.
func getenv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], name+"="); ok {
			return v
		}
	}
	return ""
}

// cause is the error of the system call alone.
func cause(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

func ignoreEINTR(f func() error) error {
	for {
		if err := f(); err != syscall.EINTR {
			return err
		}
	}
}
