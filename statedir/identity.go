package statedir

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/waypointd/waypoint/mux/wire"
)

const (
	identityFile = "identity.key"
	idFile       = "id"
)

// Identity is the ed25519 key kept in the directory (0600), made at first use.
func (d *Dir) Identity() (ed25519.PrivateKey, error) {
	key, err := d.readIdentity()
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	_, key, err = ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "make identity key: %v", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "encode identity key: %v", err)
	}
	made, err := d.createFile(identityFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	if err != nil {
		return nil, err
	}
	if !made {
		return d.readIdentity() // another process was first
	}
	return key, nil
}

// readIdentity reads the key; fs.ErrNotExist where there is none.
func (d *Dir) readIdentity() (ed25519.PrivateKey, error) {
	path := d.Path(identityFile)
	f, err := openRegular(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, err
	case errors.Is(err, errIrregular):
		return nil, wire.Errorf(wire.BadUsage, "identity key %s cannot be read: %v", path, cause(err)).
			WithHint("restore it from a backup, or move that away to get a new identity")
	case err != nil:
		return nil, d.explain("read", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, d.explain("read", err)
	}
	if m := fi.Mode().Perm(); m&0o077 != 0 {
		return nil, wire.Errorf(wire.Denied, "identity key %s can be reached by other users (mode %04o)", path, m).
			WithHint("if nobody can have copied it, chmod 600 %s; else remove it to get a new identity", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, d.explain("read", err)
	}
	if block, _ := pem.Decode(b); block != nil && block.Type == "PRIVATE KEY" {
		if k, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if key, ok := k.(ed25519.PrivateKey); ok {
				return key, nil
			}
		}
	}
	return nil, wire.Errorf(wire.BadUsage, "identity key %s is no ed25519 key in PEM", path).
		WithHint("restore it from a backup, or remove it to get a new identity")
}

// ValidID reports whether id may name a server, a runner or a job.
func ValidID(id string) bool { return wire.CheckID(id) == nil }

// ID is the id kept in the directory, a ULID made at first use; with want not
// empty, that one is kept and returned (BadUsage where it is no valid id).
func (d *Dir) ID(want string) (string, error) {
	if want != "" && !ValidID(want) {
		return "", wire.Errorf(wire.BadUsage, "%q is no valid id", want).
			WithHint("use up to 63 letters, digits, dots, underscores and hyphens, a letter or digit first")
	}
	have, err := d.readID()
	switch {
	case err == nil && (want == "" || have == want):
		return have, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist) && want == "":
		return "", err
	case want != "":
		return want, d.WriteFile(idFile, []byte(want+"\n"), 0o600)
	}
	id := ulid.Make().String()
	made, err := d.createFile(idFile, []byte(id+"\n"), 0o600)
	if err != nil {
		return "", err
	}
	if !made {
		return d.readID() // another process was first
	}
	return id, nil
}

// readID reads the id; fs.ErrNotExist where there is none.
func (d *Dir) readID() (string, error) {
	b, err := os.ReadFile(d.Path(idFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err != nil {
		return "", d.explain("read", err)
	}
	id := strings.TrimSpace(string(b))
	if !ValidID(id) {
		return "", wire.Errorf(wire.BadUsage, "%s does not hold a valid id", d.Path(idFile)).
			WithHint("restore it from a backup, or remove it to get a new id")
	}
	return id, nil
}

// Fingerprint is "SHA256:" and the unpadded base64 of the key's hash.
func Fingerprint(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}
