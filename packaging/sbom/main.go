//go:build sbom

// Command sbom prints what is in a program, as a CycloneDX bill of materials:
//
//	sbom PROGRAM COPYRIGHT
//
// The modules, their versions and their hashes are those of the program's own
// build information, the licences those of the file copyright, which must name
// all of them. VERSION is the release, SOURCE_DATE_EPOCH the only time in it;
// nothing in it is random, so the same program gives the same bytes.
//
// It has a build tag because its library is in packaging/tools.mod: it is no
// part of what is shipped.
package main

import (
	"bufio"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom PROGRAM COPYRIGHT")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1], os.Args[2], os.Getenv("VERSION"), os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(w io.Writer, program, copyright, version, epoch string) error {
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("read SOURCE_DATE_EPOCH: %w", err)
	}
	if version == "" {
		return errors.New("VERSION is not set")
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("read build information: %w", err)
	}
	licences, err := readCopyright(copyright)
	if err != nil {
		return err
	}
	sum, err := digest(program)
	if err != nil {
		return err
	}

	main := cyclonedx.Component{
		BOMRef:     purl(info.Main.Path, version),
		Type:       cyclonedx.ComponentTypeApplication,
		Name:       "waypoint",
		Version:    version,
		PackageURL: purl(info.Main.Path, version),
		Hashes:     &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: sum}},
		Licenses:   &cyclonedx.Licenses{{Expression: "Apache-2.0"}},
	}
	var settings []cyclonedx.Property
	for _, s := range info.Settings {
		settings = append(settings, cyclonedx.Property{Name: "go:build:" + s.Key, Value: s.Value})
	}
	main.Properties = &settings

	// Go's own library is a module to whoever looks for vulnerabilities.
	library := cyclonedx.Component{
		Type:       cyclonedx.ComponentTypeLibrary,
		Name:       "std",
		Version:    info.GoVersion,
		PackageURL: purl("std", strings.TrimPrefix(info.GoVersion, "go")),
	}
	if err := license(&library, licences, "go"); err != nil {
		return err
	}
	components := []cyclonedx.Component{library}
	for _, m := range info.Deps {
		c, err := component(m, licences)
		if err != nil {
			return err
		}
		components = append(components, c)
	}
	var refs []string
	for i := range components {
		components[i].BOMRef = components[i].PackageURL
		refs = append(refs, components[i].BOMRef)
	}

	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{
		Timestamp: time.Unix(seconds, 0).UTC().Format(time.RFC3339),
		Component: &main,
	}
	bom.Components = &components
	// A program does not say which of its modules needs which.
	bom.Dependencies = &[]cyclonedx.Dependency{{Ref: main.BOMRef, Dependencies: &refs}}
	return cyclonedx.NewBOMEncoder(w, cyclonedx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(bom, cyclonedx.SpecVersion1_6)
}

func component(m *debug.Module, licences map[string]string) (cyclonedx.Component, error) {
	path := m.Path
	if m.Replace != nil {
		m = m.Replace
	}
	c := cyclonedx.Component{
		Type:       cyclonedx.ComponentTypeLibrary,
		Name:       m.Path,
		Version:    m.Version,
		PackageURL: purl(m.Path, m.Version),
		// As go.sum has it: a hash of the hashes of the module's files.
		Properties: &[]cyclonedx.Property{{Name: "go:sum", Value: m.Sum}},
	}
	text, ok := strings.CutPrefix(m.Sum, "h1:")
	if !ok {
		return c, fmt.Errorf("module %s has no hash", m.Path)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return c, fmt.Errorf("read hash of %s: %w", m.Path, err)
	}
	c.Hashes = &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(raw)}}
	return c, license(&c, licences, path)
}

func license(c *cyclonedx.Component, licences map[string]string, path string) error {
	expression, ok := licences[path]
	if !ok {
		return fmt.Errorf("the file copyright has no licence of %s", path)
	}
	c.Licenses = &cyclonedx.Licenses{{Expression: expression}}
	return nil
}

// purl is a module's package URL.
func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// spdx turns Debian's names of licences into those of SPDX.
var spdx = strings.NewReplacer("Expat", "MIT", "-clause", "-Clause", " and ", " AND ", "public-domain", "LicenseRef-public-domain")

// readCopyright has the licences by module, as expressions of SPDX.
func readCopyright(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	licences, module := map[string]string{}, ""
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if files, ok := strings.CutPrefix(lines.Text(), "Files: vendor/"); ok {
			module = strings.TrimSuffix(files, "/*")
		} else if names, ok := strings.CutPrefix(lines.Text(), "License: "); ok && module != "" {
			licences[module], module = spdx.Replace(names), ""
		}
	}
	return licences, lines.Err()
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
