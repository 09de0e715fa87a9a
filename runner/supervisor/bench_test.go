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

// BenchmarkTrueOfUser is BenchmarkTrue with jobs of another user, which have
// directories that are handed over.
func BenchmarkTrueOfUser(b *testing.B) {
	own, job := testUsers(b)
	for _, kind := range kinds(b) {
		for _, as := range []string{"", job.Name} {
			b.Run(kind+"/"+as, func(b *testing.B) {
				dir := openDirectory(b)
				s, err := New(Config{Dir: dir, Isolation: kind, JobUser: as})
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
				own.UID, own.GID = 0, 0
				h := &host{dir: dir, own: own}
				sp := h.spec(b, "/bin/true")
				sp.Stdin = ""
				for b.Loop() {
					Recycle(sp.Dir)
					if err := s.Start(ctx, sp); err != nil {
						b.Fatal(err)
					}
					e := <-ends
					s.Forget(ctx, e.JobRef)
				}
			})
		}
	}
}
