package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"
)

// goldenMessages are messages whose JSON older and newer builds must read.
func goldenMessages() []any {
	code := 3
	ref := JobRef{Job: "01JOB", Attempt: 2}
	spec := JobSpec{
		Operation: OpRun, Project: "shop", App: "web", Workspace: "default", Command: []string{"make", "all"},
		Env: map[string]string{"A": "1"}, Stdin: "sha256:00", Source: &Source{Tree: "sha256:11"},
		Target: Target{Labels: map[string]string{"os": "linux"}}, Priority: 5, Timeout: Duration(90 * time.Second),
		DependsOn: []string{"#0"}, Singleton: "nightly", IdempotencyKey: "01KEY",
		Hooks: []Hook{{When: "before", Command: []string{"true"}, OnFailure: "continue"}},
	}
	job := Job{
		ID: "01JOB", Operation: OpRun, State: Failed, Reason: ReasonFailed, Error: "exit status 3", ExitCode: &code,
		Target: Target{Any: true}, RunnerID: "r1", Attempt: 2, QueuedAt: when, StartedAt: when.Add(time.Second),
		FinishedAt: when.Add(time.Minute), LogBytes: 1234, Usage: &Usage{CPUSeconds: 1.5, MaxRSSBytes: 4096, WallSeconds: 2.25},
	}
	return []any{
		Hello{VersionMin: 1, VersionMax: 1, Role: RoleRunner, Software: "waypoint 0.1.0", Runner: &RunnerHello{
			ID: "r1", Kind: KindRemote, PublicKey: []byte{1, 2, 3}, Labels: map[string]string{"os": "linux"}, Concurrency: 2}},
		Challenge{Nonce: []byte{1, 2, 3}},
		Proof{Signature: []byte{4, 5, 6}},
		Welcome{Version: 1, Software: "waypoint 0.1.0", ServerID: "s1", RunnerID: "r1"},
		SubmitRequest{Jobs: []JobSpec{spec}},
		SubmitReply{Jobs: []Job{job}},
		JobRequest{ID: "01JOB"},
		CancelRequest{ID: "01JOB", Force: true},
		StreamRequest{ID: "01JOB", Attempt: 2, Offset: 99, Follow: true},
		StreamEvent{Job: job, Last: true},
		BlobDigests{Digests: []string{"sha256:00"}},
		BlobHeader{Digest: "sha256:00", Size: 5},
		WorkEvent{Begin: &WorkBegin{Held: []Held{{JobRef: ref, Started: true}}, Concurrency: 2}},
		WorkEvent{Ack: &ref},
		WorkEvent{Nack: &Nack{JobRef: ref, Error: "no room"}},
		WorkEvent{Heartbeat: true},
		WorkOrder{Standing: &Standing{State: Adopted, Admitted: true, Source: SourceFile, Issued: when, Expiry: when.Add(time.Hour)}},
		WorkOrder{Standing: &Standing{State: Preadopted, Problem: TokenExpired, Detail: "it expired", Granted: true, Draining: true,
			Refused: []TokenRefusal{{Source: SourceEnvironment, Problem: OtherID, Detail: "it was made for another runner"}}}},
		WorkOrder{Grant: &Grant{Token: "wprun_x"}},
		AuthenticateRequest{Offers: []TokenOffer{{Source: SourceFile, Token: "wprun_x"}}, Stored: true},
		AgentStatus{ID: "r1", Fingerprint: "SHA256:x", Version: "waypoint 0.1.0", PID: 7, Server: "unix:///s", Error: "gone", Draining: true, Jobs: []JobRef{ref}},
		RunnerTokenRequest{ID: "r1", Labels: map[string]string{"env": "prod"}, ExpiresIn: Duration(time.Hour)},
		DrainRequest{ID: "r1", Drain: true},
		TokenReply{Token: "wpusr_x", Expiry: when, Fingerprint: "SHA256:x"},
		ServerStatus{ID: "s1", Version: "waypoint 0.1.0", Store: "sqlite /s", Listeners: []Listener{{Address: "unix:///s", Kind: ForRunners}},
			Limits: []PeerLimit{{Name: "max_sessions", Most: 10, Times: 1, Last: when}, {Name: "limits.unread", Most: 9}}},
		Reloaded{Changed: []string{"lease"}, RestartNeeded: []string{"listen"}},
		SnapshotHeader{Format: 1, Schema: 3, ServerID: "s1", TakenAt: when, Software: "waypoint 0.1.0", Engine: "sqlite", Size: 8192},
		UserTokenRequest{ExpiresIn: Duration(time.Hour)},
		RotateRequest{Revoke: true},
		RotateReply{KeyID: "00ff", Retired: []TokenKey{{ID: "ff00", Until: when}}},
		WorkOrder{Begun: &WorkBegun{Keep: []JobRef{ref}, HeartbeatEvery: Duration(15 * time.Second)}},
		WorkOrder{Assign: &Assignment{JobRef: ref, Spec: spec, Sequence: 4, LogLimit: 1 << 30}},
		WorkOrder{Start: &ref},
		WorkOrder{Drop: &ref},
		WorkOrder{Cancel: &CancelJob{JobRef: ref, Force: true}},
		ReportRequest{JobRef: ref},
		ReportOrder{Offset: 4096, Ended: true},
		Result{State: Failed, Reason: ReasonFailed, ExitCode: &code, LogBytes: 1234},
		ReportRequest{JobRef: ref, Late: true},
		Result{State: Success, LogBytes: 1234, FinishedAt: when},
		Job{ID: "01JOB", Operation: OpRun, State: Failed, Reason: ReasonRunnerLost, Target: Target{Any: true}, Attempt: 2, QueuedAt: when,
			LateResult: &LateResult{Attempt: 2, State: Failed, Reason: ReasonFailed, ExitCode: &code, Signal: "SIGTERM", LogBytes: 1234,
				FinishedAt: when, ReportedAt: when.Add(time.Hour)}},
	}
}

func TestGoldenMessages(t *testing.T) {
	var got bytes.Buffer
	for _, m := range goldenMessages() {
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%T %s\n", m, b)
		again := reflect.New(reflect.TypeOf(m))
		if err := json.Unmarshal(b, again.Interface()); err != nil || !reflect.DeepEqual(again.Elem().Interface(), m) {
			t.Errorf("%s came back as %+v, %v", b, again.Elem(), err)
		}
	}
	golden(t, "messages.txt", got.Bytes())
}

// A newer peer's fields are no error.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	var h Hello
	if err := json.Unmarshal([]byte(`{"version_min":1,"version_max":9,"role":"client","colour":"green"}`), &h); err != nil || h.VersionMax != 9 {
		t.Errorf("got %+v, %v", h, err)
	}
}
