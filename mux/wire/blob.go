package wire

// Blobs are content-addressed bytes: the files of an uploaded tree, the
// manifest that lists them, artifacts, a job's standard input. A digest is
// "sha256:" and 64 hexadecimal digits of the bytes.

// BlobDigests names blobs; at most 4,096 in one message.
type BlobDigests struct {
	Digests []string `json:"digests"`
}

// BlobHeader comes before the DATA frames of one blob, whose offsets count
// from 0 to Size. The receiver checks the digest.
type BlobHeader struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}
