package packaging

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestBillOfMaterials: the bill of materials has every module that "go version
// -m" says of the program, with its version, its hash and a licence, nothing
// besides, and is the same each time.
func TestBillOfMaterials(t *testing.T) {
	dir := t.TempDir()
	program, sbom := filepath.Join(dir, "waypoint"), filepath.Join(dir, "sbom")
	build(t, "-trimpath", "-o", program, "../cmd/waypoint")
	build(t, "-modfile=tools.mod", "-tags=sbom", "-o", sbom, "./sbom")

	print := func(zone string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), sbom, program, "copyright")
		cmd.Env = append(os.Environ(), "VERSION=7.8.9", "SOURCE_DATE_EPOCH=1700000000", "TZ="+zone)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("sbom: %v", err)
		}
		return out
	}
	text := print("UTC")
	if !bytes.Equal(text, print("Asia/Kathmandu")) {
		t.Error("the same program has two bills of materials")
	}

	type component struct {
		Ref     string `json:"bom-ref"`
		Name    string
		Version string
		Hashes  []struct{ Alg, Content string }
		Purl    string

		Licenses   []struct{ Expression string }
		Properties []struct{ Name, Value string }
	}
	var bom struct {
		BOMFormat, SerialNumber string
		Metadata                struct {
			Timestamp string
			Component component
		}
		Components   []component
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(text, &bom); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	main := bom.Metadata.Component
	if bom.BOMFormat != "CycloneDX" || bom.SerialNumber != "" || bom.Metadata.Timestamp != "2023-11-14T22:13:20Z" ||
		main.Version != "7.8.9" || len(main.Hashes) != 1 || main.Hashes[0].Content != hex.EncodeToString(sum[:]) {
		t.Errorf("the bill of materials begins with %+v", bom.Metadata)
	}

	// What Go says, line by line: "dep", path, version, hash.
	out, err := exec.CommandContext(t.Context(), "go", "version", "-m", program).Output()
	if err != nil {
		t.Fatalf("go version -m: %v", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	_, compiler, _ := strings.Cut(first, ": ")
	want := map[string][2]string{"std": {compiler, ""}}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); f[0] == "dep" {
			want[f[1]] = [2]string{f[2], f[3]}
		} else if f[0] == "=>" {
			t.Fatalf("a module is replaced, which this test does not read: %s", line)
		}
	}
	if len(want) < 15 {
		t.Fatalf("go version -m names only %d modules", len(want))
	}
	if len(bom.Dependencies) != 1 || bom.Dependencies[0].Ref != main.Ref || len(bom.Dependencies[0].DependsOn) != len(want) {
		t.Errorf("the program depends on %+v", bom.Dependencies)
	}
	for _, c := range bom.Components {
		w, ok := want[c.Name]
		delete(want, c.Name)
		switch {
		case !ok:
			t.Errorf("%s is not in the program, or twice in its bill", c.Name)
		case c.Version != w[0] || c.Purl != "pkg:golang/"+c.Name+"@"+strings.TrimPrefix(w[0], "go"):
			t.Errorf("%s is %s, %s, want %s", c.Name, c.Version, c.Purl, w[0])
		case len(c.Licenses) != 1 || c.Licenses[0].Expression == "":
			t.Errorf("%s has no licence", c.Name)
		case c.Name == "std":
		case len(c.Properties) != 1 || c.Properties[0].Value != w[1]:
			t.Errorf("%s has the hash %v, want %s", c.Name, c.Properties, w[1])
		default:
			raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(w[1], "h1:"))
			if err != nil || len(c.Hashes) != 1 || c.Hashes[0].Content != hex.EncodeToString(raw) {
				t.Errorf("%s has the hashes %v, want %x", c.Name, c.Hashes, raw)
			}
		}
	}
	for name := range want {
		t.Errorf("%s is in the program and not in its bill", name)
	}
}

// build builds a program; the test is skipped where a module is not here and
// there is no network.
func build(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build", "-buildvcs=false"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	switch out, err := cmd.CombinedOutput(); {
	case err != nil && offline.Match(out):
		t.Skipf("modules are not here: %s", out)
	case err != nil:
		t.Fatalf("go build: %v: %s", err, out)
	}
}
