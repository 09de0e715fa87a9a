package executor

import (
	"os"
	"path/filepath"
	"testing"
)

func BenchmarkTrue(b *testing.B) {
	null, _ := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	b.Run("fork+exec", func(b *testing.B) {
		for b.Loop() {
			p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Files: []*os.File{null, null, null}})
			if err != nil {
				b.Fatal(err)
			}
			p.Wait()
		}
	})
	for _, kind := range []string{IsolationCgroup, IsolationProcessGroup} {
		b.Run(kind, func(b *testing.B) {
			e, err := New(Config{Dir: b.TempDir(), Isolation: kind})
			if err != nil {
				b.Skip(err)
			}
			defer e.Close()
			h := filepath.Join(b.TempDir(), "handle")
			for b.Loop() {
				tr, err := e.NewTree(Options{Name: "job-1", Stdout: null, Stderr: null, Handle: h})
				if err != nil {
					b.Fatal(err)
				}
				if err := tr.Start(Command{Argv: []string{"/bin/true"}, Env: env, Dir: "/"}); err != nil {
					b.Fatal(err)
				}
				if x := tr.Wait(); !x.Success() {
					b.Fatal(x)
				}
				if _, err := tr.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
