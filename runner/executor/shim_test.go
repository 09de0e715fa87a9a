package executor

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestShimKilled(t *testing.T) {
	e, err := New(Config{Dir: t.TempDir(), Isolation: IsolationProcessGroup})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	file := filepath.Join(t.TempDir(), "pids")
	tr := newTree(t, e, output(t))
	c := sh(`sleep 1000 & echo $! >> $F; echo $$ >> $F; while [ ! -e $F.go ]; do sleep 0.01; done; kill -TERM $PPID; kill -KILL $PPID; wait`)
	c.Env = append(c.Env, "F="+file)
	if err := tr.Start(c); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".go", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if x := tr.Wait(); !errors.Is(x.Err, errShimDied) {
		t.Errorf("got %+v", x)
	}
	if err := tr.Start(sh("true")); err == nil {
		t.Error("a command was started by a dead shim")
	}
	if _, err := tr.Close(); err != nil {
		t.Error(err)
	}
	b, _ := os.ReadFile(file)
	for f := range strings.FieldsSeq(string(b)) {
		pid, _ := strconv.Atoi(f)
		if s, ok := readStat(pid); ok && !s.dead {
			t.Errorf("process %d is left", pid)
		}
	}
}

// A job that stops its shim, once or for as long as it lives, is ended all the same.
func TestShimStopped(t *testing.T) {
	e, err := New(Config{Dir: t.TempDir(), Isolation: IsolationProcessGroup})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	tr := newTree(t, e, output(t))
	defer tr.Close()
	if err := tr.Start(sh(`kill -STOP $PPID; exit 3`)); err != nil {
		t.Fatal(err)
	}
	if x := tr.Wait(); x.Err != nil || x.Code != 3 {
		t.Errorf("the end of one that has stopped its shim: %+v", x)
	}
	for name, stop := range map[string]string{
		"once":     `kill -STOP $PPID`,
		"for ever": `P=$PPID; (while :; do kill -STOP $P; done) & echo $! >> $F`,
	} {
		for how, end := range map[string]func(Tree){
			"killed": func(tr Tree) { tr.Kill() },
			"termed": func(tr Tree) { tr.Term(); tr.Kill() },
			"closed": func(Tree) {},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "pids")
				tr := newTree(t, e, output(t))
				c := sh(`setsid sleep 1000 & echo $! >> $F; echo $$ >> $F; ` + stop + `; touch $F.done; wait`)
				c.Env = append(c.Env, "F="+file)
				if err := tr.Start(c); err != nil {
					t.Fatal(err)
				}
				await(t, "the job has stopped its shim", func() bool { _, err := os.Stat(file + ".done"); return err == nil })
				end(tr)
				if _, err := tr.Close(); err != nil {
					t.Error(err)
				}
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for f := range strings.FieldsSeq(string(b)) {
					pid, _ := strconv.Atoi(f)
					if s, ok := readStat(pid); ok && !s.dead {
						t.Errorf("process %d is left", pid)
					}
				}
			})
		}
	}
}
