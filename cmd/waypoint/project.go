package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/waypointd/waypoint/cmd/internal/output"
	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
)

// findProject is the project whose file is in dir or above, nil where there
// is none.
func findProject(dir string) (*operation.Project, error) {
	p, err := operation.Find(dir)
	if wire.KindOf(err) == wire.NotFound {
		return nil, nil
	}
	return p, err
}

// project is the one that the command's operations are about.
func (a *app) project() (*operation.Project, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find current directory: %w", err)
	}
	p, err := operation.Find(cwd)
	switch {
	case err != nil:
		return nil, err
	case a.Project != "" && a.Project != p.Name():
		return nil, wire.Errorf(wire.NotFound, "find project %q: the project file of %s is of %q", a.Project, p.Root(), p.Name())
	}
	return p, nil
}

// initProject is `waypoint init`.
type initProject struct{}

func (*initProject) Help() string {
	return "It is written into the current directory. A file that is there is read and said to be good, or what is wrong in it; it is never changed."
}

// initAnswer is its answer.
type initAnswer struct {
	Path    string   `json:"path"`
	Project string   `json:"project"`
	Apps    []string `json:"apps"`
	Created bool     `json:"created"`
}

func (initProject) Run(a *app) error {
	cwd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find current directory: %w", err)
	}
	path := filepath.Join(cwd, operation.ProjectFile)
	name := a.Project
	if name == "" {
		name = projectName(filepath.Base(cwd))
	}
	if !validName(name) {
		return wire.Errorf(wire.BadUsage, "write %s: %q is no name of a project", operation.ProjectFile, name).
			WithHint(nameHint)
	}
	created, err := writeNew(path, operation.Example(name))
	if err != nil {
		return err
	}
	p, err := operation.Load(path)
	if err != nil {
		return err
	}
	answer := initAnswer{Path: path, Project: p.Name(), Apps: p.Apps(), Created: created}
	return a.print(answer, func(w io.Writer) error {
		if created {
			_, err := fmt.Fprintf(w, "Wrote %s for project %q.\n", operation.ProjectFile, p.Name())
			return err
		}
		_, err := fmt.Fprintf(w, "%s is good: project %q, apps: %s.\n", operation.ProjectFile, p.Name(), output.Cell(strings.Join(p.Apps(), ", ")))
		return err
	})
}

// nameHint says what a name of a project or workspace may be.
const nameHint = "use up to 63 letters, digits, '.', '_' and '-', a letter or digit first"

// projectName makes a name of a directory's.
func projectName(base string) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && validName("a"+string(r)) {
			return r
		}
		return '-'
	}, base)
	name = strings.TrimLeft(name, "-._")
	if name == "" {
		return "project"
	}
	return name[:min(len(name), 63)]
}

// writeNew writes a file that is not there yet, and reports whether it did.
func writeNew(path, text string) (created bool, err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write project file: %w", err)
	}
	if _, err = io.WriteString(f, text); err != nil {
		return false, errors.Join(fmt.Errorf("write project file: %w", err), f.Close(), os.Remove(path))
	}
	return true, f.Close()
}
