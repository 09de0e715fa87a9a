package runner

import (
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
)

// BenchmarkJob is one job of /bin/true at a time, from Assign to its result.
func BenchmarkJob(b *testing.B) {
	bn := newBench(b, func(c *Config) { c.Logger = nil; c.Notify = nil }).start().connected()
	for b.Loop() {
		a := script("")
		a.Spec.Script, a.Spec.Command = "", []string{"/bin/true"}
		bn.s.assign(a)
		bn.s.ended(a.JobRef)
	}
}

// BenchmarkOutput is one job that writes 100 MB.
func BenchmarkOutput(b *testing.B) {
	bn := newBench(b, func(c *Config) { c.Logger = nil; c.Notify = nil }).start().connected()
	const size = 100 << 20
	b.SetBytes(size)
	for b.Loop() {
		a := script("")
		a.Spec.Script, a.Spec.Command = "", []string{"head", "-c", "104857600", "/dev/zero"}
		bn.s.discard = true
		bn.s.assign(a)
		if j := bn.s.ended(a.JobRef); j.result.State != wire.Success || j.length != size {
			b.Fatalf("%+v, %d bytes", j.result, j.length)
		}
	}
}
