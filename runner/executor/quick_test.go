package executor

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// A command may exit before its start has been said: that it was started is
// said first all the same, and its exit is not lost.
func TestQuickCommandsBelowAShim(t *testing.T) {
	e, err := New(Config{Dir: t.TempDir(), Isolation: IsolationProcessGroup})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	rounds := 1500
	if testing.Short() {
		rounds = 200
	}
	var trees sync.WaitGroup
	for i := range 4 {
		trees.Go(func() {
			tr, err := e.NewTree(Options{
				Name: "job-" + strconv.Itoa(i), Stdout: null, Stderr: null,
				Handle: filepath.Join(t.TempDir(), "handle"+strconv.Itoa(i)),
			})
			if err != nil {
				t.Error(err)
				return
			}
			defer tr.Close()
			for n := range rounds {
				if err := tr.Start(Command{Argv: []string{"/bin/true"}, Env: env, Dir: "/"}); err != nil {
					t.Errorf("start %d: %v", n, err)
					return
				}
				if x := tr.Wait(); !x.Success() {
					t.Errorf("command %d: %+v", n, x)
					return
				}
			}
		})
	}
	trees.Wait()
}
