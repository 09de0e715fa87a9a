package contexts

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/waypointd/waypoint/statedir"
)

// tempPrefix marks files that are being written.
const tempPrefix = ".tmp-"

// put writes a file as a whole: under another name first, which nobody takes
// for a context, and durable before it has its own. Without replace one that
// is there is kept, and the error is fs.ErrExist.
func put(path string, text []byte, replace bool) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		if replace {
			err = os.Rename(f.Name(), path)
		} else {
			err = statedir.RenameNew(f.Name(), path)
		}
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return statedir.SyncDir(filepath.Dir(path))
}
