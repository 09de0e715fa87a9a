// Package operation turns a project file into job specs (on the client) and a
// job spec into steps (on the runner): sources, artifacts, environment, the
// built-in components. It starts no process and no goroutine, and it speaks to
// no server: bytes come and go through the functions it is given.
//
// # The project file
//
// [Load] reads waypoint.toml. Whatever it does not know is an error that names
// file, line and the nearest known key; what belongs to a later version is
// refused by name. A [Project] makes one [wire.JobSpec] for each operation of
// an app.
//
// # Trees
//
// A source tree travels as blobs: one for each different file, and a manifest
// that lists them. The manifest's digest names the tree, so it is canonical:
//
//	{"version":1,"entries":[
//	  {"path":"bin","type":"dir"},
//	  {"path":"bin/run","type":"file","exec":true,"size":12,"digest":"sha256:…"},
//	  {"path":"run","type":"link","target":"bin/run"}]}
//
// Entries are in the order of their paths' bytes, each once, every directory
// before what is in it. The same tree gives the same digest on any machine:
// times, owners and modes other than "executable" are no part of it. [Scan]
// makes a tree, [Checkout] writes one.
//
// # Artifacts
//
// An artifact is a tar.zst made by [Pack] and read by [Unpack]. The same bytes
// in the same files give the same archive: entries are sorted, times and
// owners are zero, modes are 0755 or 0644.
//
// # Hostile input
//
// Manifests and archives come from the other side of the wire. Neither can
// write outside the directory it is given: paths are checked, every parent is
// a directory made by the same manifest or archive, nothing is written twice,
// and all of it happens below an [os.Root]. A symbolic link may climb with
// ".." at the start of its target only, and no further than to the root of its
// tree; such links cannot be combined into one that leaves it.
package operation

import (
	"context"
	"io"

	"github.com/waypointd/waypoint/mux/wire"
)

// Fetch gets blobs by digest and calls sink for each, in the order asked for;
// client.Client.GetBlobs has this shape.
type Fetch func(ctx context.Context, digests []string, sink func(h wire.BlobHeader, r io.Reader) error) error

// Layout names the files of one attempt.
type Layout struct {
	Work     string // working directory: the source's root
	Home     string // HOME, TMPDIR live here
	Artifact string // where the artifact is unpacked; "" where there is none
	Output   string // the file whose key=value lines become outputs
	User     string // whom the job runs as; "" is the user of this process
}

// TempDir is the job's TMPDIR, a directory in Home. It is made by whoever
// makes Home.
func (l Layout) TempDir() string { return l.Home + "/tmp" }

// exec is the component that runs a command; so far the only one.
const exec = "exec"

// components is said where another one is asked for.
const components = exec

func unknownComponent(name string) *wire.Error {
	return wire.Errorf(wire.BadUsage, "component %q is not available in this version; known: %s", name, components)
}
