package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/waypointd/waypoint/mux/wire"
)

// release number of this build; the linker sets it (-X main.number=1.2.3).
var number = "0.1.0"

// software is what this program says of itself to its peers.
func software() string { return "waypoint " + number }

type version struct{}

// build is what this binary is.
type buildInfo struct {
	Version     string `json:"version"`
	Commit      string `json:"commit,omitempty"`
	Go          string `json:"go"`
	OS          string `json:"os"`
	Arch        string `json:"arch"`
	ProtocolMin int    `json:"protocol_min"`
	ProtocolMax int    `json:"protocol_max"`
}

func (version) Run(a *app) error {
	b := buildInfo{
		Version: number, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
		ProtocolMin: wire.VersionMin, ProtocolMax: wire.VersionMax,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				b.Commit = s.Value
			}
		}
	}
	return a.print(b, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "waypoint %s (%s, %s/%s)\n", b.Version, b.Go, b.OS, b.Arch)
		return err
	})
}
