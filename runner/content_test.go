package runner

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waypointd/waypoint/mux/wire"
	"github.com/waypointd/waypoint/runner/operation"
)

// upload stores a directory's tree with the server.
func (s *testServer) upload(dir string) string {
	s.t.Helper()
	tree, err := operation.Scan(s.t.Context(), dir, nil, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, blob := range tree.Blobs {
		r, err := blob.Open()
		if err != nil {
			s.t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			s.t.Fatal(err)
		}
		if got := s.put(b); got != blob.Digest {
			s.t.Fatalf("blob %s has digest %s", blob.Digest, got)
		}
	}
	return tree.Digest
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

// A build makes an artifact of its source, which a deploy gets unpacked.
func TestBuildAndDeploy(t *testing.T) {
	b := newBench(t, nil).start().connected()
	src := t.TempDir()
	write(t, filepath.Join(src, "sub/in.txt"), "hello\n")
	write(t, filepath.Join(src, "make.sh"), "#!/bin/sh\n")
	build := script("mkdir -p bin; cat in.txt in.txt >bin/out; echo version=7 >>$WAYPOINT_OUTPUT")
	build.Spec.Operation, build.Spec.Dir = wire.OpBuild, "sub"
	build.Spec.Source, build.Spec.Output = &wire.Source{Tree: b.s.upload(src)}, []string{"bin/out"}
	b.s.assign(build)
	j := b.s.ended(build.JobRef)
	want(t, j, wire.Success, "")
	art := j.result.Artifact
	if art == nil || b.s.blobs[art.Digest] == nil || int64(len(b.s.blobs[art.Digest])) != art.Size || j.result.Outputs["version"] != "7" {
		t.Fatalf("result %+v", j.result)
	}
	b.gone(build.JobRef)

	deploy := script("cat $WAYPOINT_ARTIFACT/bin/out; cat")
	deploy.Spec.Operation = wire.OpDeploy
	deploy.Spec.Stdin = b.s.put([]byte("from stdin\n"))
	deploy.Artifact = &wire.Record{Kind: wire.RecordArtifact, Number: 1, Digest: art.Digest, Size: art.Size}
	b.s.assign(deploy)
	j = b.s.ended(deploy.JobRef)
	want(t, j, wire.Success, "")
	if got := string(j.log); got != "hello\nhello\nfrom stdin\n" {
		t.Errorf("output %q", got)
	}
	b.gone(deploy.JobRef)
}

// A server that has begun anew may have forgotten who has sent the artifact: it is
// sent once more, and the job ends.
func TestArtifactIsAskedForAgain(t *testing.T) {
	b := newBench(t, nil)
	refused := 0
	b.s.refuseResult = func(r wire.Result) (err error) {
		b.s.change(func() {
			if refused == 0 {
				delete(b.s.blobs, r.Artifact.Digest)
			}
			if b.s.blobs[r.Artifact.Digest] == nil {
				refused++
				err = wire.Errorf(wire.Denied, "the artifact of the job is not what its runner has sent")
			}
		})
		return err
	}
	b.start().connected()
	src := t.TempDir()
	write(t, filepath.Join(src, "in.txt"), "hello\n")
	build := script("cp in.txt out.txt")
	build.Spec.Operation = wire.OpBuild
	build.Spec.Source, build.Spec.Output = &wire.Source{Tree: b.s.upload(src)}, []string{"out.txt"}
	b.s.assign(build)
	j := b.s.ended(build.JobRef)
	want(t, j, wire.Success, "")
	if refused != 1 || j.result.Artifact == nil || b.s.blobs[j.result.Artifact.Digest] == nil {
		t.Errorf("refused %d times; %+v", refused, j.result)
	}
	b.gone(build.JobRef)
}

// A result that the server will never take becomes one that says so; one that it
// takes in the end stays what it is.
func TestResultIsNotTaken(t *testing.T) {
	for name, c := range map[string]struct {
		kind  wire.Kind
		times int // refused; then anything is taken
		state wire.State
	}{
		"for ever":      {wire.TooLarge, 1000, wire.Failed},
		"not decodable": {wire.BadUsage, 1000, wire.Failed},
		"a defect":      {wire.Internal, 1000, wire.Failed},
		"healed":        {wire.Internal, maxRefusals - 1, wire.Success},
		"no room":       {wire.Unavailable, 3 * maxRefusals, wire.Success},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			refused := 0
			b.s.refuseResult = func(r wire.Result) (err error) {
				b.s.change(func() {
					if r.Outputs != nil && refused < c.times {
						refused++
						err = wire.Errorf(c.kind, "outputs are\x00 over the limit")
					}
				})
				return err
			}
			b.start().connected()
			a := script("echo hello; echo version=7 >> $WAYPOINT_OUTPUT; exit 0")
			b.s.assign(a)
			j := b.s.ended(a.JobRef)
			if r := j.result; r.State != c.state || r.ExitCode == nil || *r.ExitCode != 0 || string(j.log) != "hello\n" {
				t.Fatalf("%+v, output %q", r, j.log)
			}
			if r := j.result; c.state == wire.Failed && (r.Reason != wire.ReasonFailed || r.Outputs != nil || refused > maxRefusals+2 ||
				r.Error != `the job ended as "success", but the server does not take its result: outputs are  over the limit`) {
				t.Errorf("%+v after %d refusals", r, refused)
			}
			if c.state == wire.Success && j.result.Outputs["version"] != "7" {
				t.Errorf("%+v", j.result)
			}
			b.gone(a.JobRef)
		})
	}
}

// A job that replaces its directory by a link has nothing of the agent's packed,
// which may belong to another user than the job's.
func TestBuildReplacesItsDirectory(t *testing.T) {
	b := newBench(t, nil).start().connected()
	src, secrets := t.TempDir(), t.TempDir()
	write(t, filepath.Join(src, "sub/in.txt"), "hello\n")
	write(t, filepath.Join(secrets, "identity.key"), "secret")
	for _, target := range []string{secrets, "../assignment.json"} {
		build := script("rm -r ../sub && ln -s " + target + " ../sub")
		build.Spec.Operation, build.Spec.Dir = wire.OpBuild, "sub"
		build.Spec.Source, build.Spec.Output = &wire.Source{Tree: b.s.upload(src)}, []string{"."}
		b.s.assign(build)
		j := b.s.ended(build.JobRef)
		want(t, j, wire.Failed, wire.ReasonFailed)
		if j.result.Artifact != nil || !strings.Contains(j.result.Error, "pack outputs") {
			t.Errorf("link to %s: %+v", target, j.result)
		}
		b.gone(build.JobRef)
	}
}

// What cannot be prepared or finished ends the job with the reason, at once.
func TestFailures(t *testing.T) {
	b := newBench(t, nil).start().connected()
	nowhere := "sha256:" + strings.Repeat("0", 64)
	bad := b.s.put([]byte("no manifest"))
	for name, c := range map[string]struct {
		change func(a *wire.Assignment)
		text   string
		ran    bool
	}{
		"source missing":   {func(a *wire.Assignment) { a.Spec.Source = &wire.Source{Tree: nowhere} }, "get source", false},
		"source bad":       {func(a *wire.Assignment) { a.Spec.Source = &wire.Source{Tree: bad} }, "get source", false},
		"artifact missing": {func(a *wire.Assignment) { a.Artifact = &wire.Record{Number: 4, Digest: nowhere} }, "get artifact 4", false},
		"artifact bad":     {func(a *wire.Assignment) { a.Artifact = &wire.Record{Number: 4, Digest: bad} }, "get artifact 4", false},
		"stdin missing":    {func(a *wire.Assignment) { a.Spec.Stdin = nowhere }, "get standard input", false},
		"component":        {func(a *wire.Assignment) { a.Spec.Use = "magic" }, `component "magic"`, false},
		"no directory":     {func(a *wire.Assignment) { a.Spec.Dir = "none" }, `"none"`, false},
		"hostile dir":      {func(a *wire.Assignment) { a.Spec.Dir = "../../../.." }, "not inside", false},
		"absolute dir":     {func(a *wire.Assignment) { a.Spec.Dir = "/tmp" }, "not inside", false},
		"output missing":   {func(a *wire.Assignment) { a.Spec.Operation = wire.OpBuild; a.Spec.Output = []string{"gone"} }, "gone", true},
		"outputs bad":      {func(a *wire.Assignment) { a.Spec.Script = "echo ran; echo nonsense >$WAYPOINT_OUTPUT" }, "line 1", true},
	} {
		a := script("echo ran")
		c.change(&a)
		b.s.assign(a)
		j := b.s.ended(a.JobRef)
		want(t, j, wire.Failed, wire.ReasonFailed)
		if !strings.Contains(j.result.Error, c.text) {
			t.Errorf("%s: error %q does not say %q", name, j.result.Error, c.text)
		}
		if ran := bytes.Contains(j.log, []byte("ran\n")); ran != c.ran {
			t.Errorf("%s: ran %v, output %q", name, ran, j.log)
		}
		if !c.ran && !bytes.Contains(j.byKind[wire.Notice], []byte(c.text)) {
			t.Errorf("%s: output does not say why: %q", name, j.log)
		}
		b.gone(a.JobRef)
	}
	if len(b.s.nacks) > 0 {
		t.Errorf("refused: %+v", b.s.nacks)
	}
}

// A build without outputs is deployed from an empty directory.
func TestEmptyArtifact(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script(`cd "$WAYPOINT_ARTIFACT" && echo "[$(ls -A)]"`)
	a.Spec.Operation, a.Artifact = wire.OpDeploy, &wire.Record{Number: 4}
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "[]\n" {
		t.Errorf("output %q", j.log)
	}
	b.gone(a.JobRef)
}

// A failed command with bad outputs stays a failed command.
func TestFailureKept(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("echo nonsense >$WAYPOINT_OUTPUT; exit 4")
	a.Spec.Operation, a.Spec.Output = wire.OpBuild, []string{"gone"}
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Failed, wire.ReasonFailed)
	if *j.result.ExitCode != 4 || !strings.Contains(j.result.Error, "code 4") {
		t.Errorf("result %+v", j.result)
	}
}

// A session lost while a source is fetched is no failure.
func TestCutWhilePreparing(t *testing.T) {
	b := newBench(t, nil).start().connected()
	src := t.TempDir()
	for i := range 20 {
		write(t, filepath.Join(src, fmt.Sprint(i)), strings.Repeat(fmt.Sprint(i), 200_000))
	}
	b.s.blobCut = 3_000_000
	a := script("cat * | wc -c")
	a.Spec.Source = &wire.Source{Tree: b.s.upload(src)}
	b.s.assign(a)
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if got := strings.TrimSpace(string(j.log)); got != fmt.Sprint(10*200_000+10*400_000) {
		t.Errorf("source of %s bytes", got)
	}
	if len(b.s.begins) < 2 {
		t.Error("the session was not cut")
	}
}

func TestCancelWhilePreparing(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("echo never")
	a.Spec.Stdin = b.s.put([]byte("x"))
	b.s.change(func() { b.s.blobHold = make(chan struct{}) })
	defer close(b.s.blobHold)
	b.s.assign(a)
	b.s.await("it is being prepared", func() bool { return b.s.gets > 0 })
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef}})
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Canceled, wire.ReasonCanceled)
	if len(j.log) > 0 {
		t.Errorf("output %q", j.log)
	}
	b.gone(a.JobRef)
}

// An agent that dies while it prepares leaves that to the next.
func TestRestartWhilePreparing(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("cat")
	a.Spec.Stdin = b.s.put([]byte("x\n"))
	hold := make(chan struct{})
	b.s.change(func() { b.s.blobHold = hold })
	b.s.assign(a)
	b.s.await("it is being prepared", func() bool { return b.s.gets > 0 })
	b.kill()
	b.wait()
	write(t, filepath.Join(b.r.attemptDir(a.JobRef), "work", "half"), "prepared")
	close(hold)
	b.s.change(func() { b.s.blobHold = nil })
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if string(j.log) != "x\n" {
		t.Errorf("output %q", j.log)
	}
	b.gone(a.JobRef)
}

// A cancel that comes while the artifact is stored ends the job as canceled.
func TestCancelWhileFinishing(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("echo built >out")
	a.Spec.Operation, a.Spec.Output = wire.OpBuild, []string{"out"}
	b.s.change(func() { b.s.blobHold = make(chan struct{}) })
	defer close(b.s.blobHold)
	b.s.assign(a)
	b.s.await("the artifact is on its way", func() bool { return b.s.missings > 0 })
	b.s.order(wire.WorkOrder{Cancel: &wire.CancelJob{JobRef: a.JobRef}})
	want(t, b.s.ended(a.JobRef), wire.Canceled, wire.ReasonCanceled)
	b.gone(a.JobRef)
}

// An artifact is stored by the agent that comes next.
func TestRestartWhileFinishing(t *testing.T) {
	b := newBench(t, nil).start().connected()
	a := script("echo built >out")
	a.Spec.Operation, a.Spec.Output = wire.OpBuild, []string{"out"}
	hold := make(chan struct{})
	b.s.change(func() { b.s.blobHold = hold })
	b.s.assign(a)
	b.s.await("the artifact is on its way", func() bool { return b.s.missings > 0 })
	b.kill()
	b.wait()
	close(hold)
	b.s.change(func() { b.s.blobHold = nil })
	b.start()
	j := b.s.ended(a.JobRef)
	want(t, j, wire.Success, "")
	if j.result.Artifact == nil || b.s.blobs[j.result.Artifact.Digest] == nil {
		t.Errorf("artifact %+v", j.result.Artifact)
	}
}

// A runner that cannot write its spool says so, takes nothing, and is healed
// by itself.
func TestSpoolBroken(t *testing.T) {
	b := newBench(t, nil).start().connected()
	if err := os.RemoveAll(b.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	write(t, b.cfg.Dir, "in the way")
	a := script("true")
	b.s.assign(a)
	b.s.await("it is given back and nothing more wanted", func() bool { return len(b.s.nacks) == 1 && len(b.s.drains) == 1 })
	if err := os.Remove(b.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	b.s.await("it is well again", func() bool { return len(b.s.drains) == 2 && !b.s.drains[1] })
	again := script("true")
	b.s.assign(again)
	want(t, b.s.ended(again.JobRef), wire.Success, "")
}
