package supervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// BenchmarkTrue is a start of /bin/true to its end as the supervisor says it,
// against a bare fork+exec.
func BenchmarkTrue(b *testing.B) {
	b.Run("fork+exec", func(b *testing.B) {
		null, _ := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		for b.Loop() {
			p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Files: []*os.File{null, null, null}})
			if err != nil {
				b.Fatal(err)
			}
			p.Wait()
		}
	})
	for _, kind := range kinds(b) {
		b.Run(kind, func(b *testing.B) {
			s, err := New(Config{Dir: b.TempDir(), Isolation: kind})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			ends := make(chan Event, 16)
			ctx := b.Context()
			go s.Watch(ctx, func(e Event) {
				if e.Ended {
					ends <- e
				}
			})
			base := b.TempDir()
			n := 0
			for b.Loop() {
				n++
				sp := Spec{Dir: filepath.Join(base, strconv.Itoa(n)), WorkDir: "/", Steps: []Step{{Argv: []string{"/bin/true"}}}, Env: []string{"PATH=/bin"}}
				sp.Job = "job" + strconv.Itoa(n)
				if err := s.Start(ctx, sp); err != nil {
					b.Fatal(err)
				}
				e := <-ends
				s.Forget(ctx, e.JobRef)
			}
		})
	}
}

// BenchmarkOutput is output from a process to the spool.
func BenchmarkOutput(b *testing.B) {
	for _, kind := range kinds(b) {
		b.Run(kind, func(b *testing.B) {
			s, err := New(Config{Dir: b.TempDir(), Isolation: kind})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			const n = 512 << 20
			b.SetBytes(n)
			exe, _ := os.Executable()
			for b.Loop() {
				sp := spec(b, exe, "flood", strconv.Itoa(n))
				start(b, s, sp)
				if end := ended(b, s, sp.JobRef); end.LogBytes != n {
					b.Fatalf("%+v", end)
				}
				os.RemoveAll(sp.Dir)
			}
		})
	}
}
