package statedir

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// TestKilledOwner kills, at a random moment each time, a process that opens
// the directory and makes, writes and changes everything in it. It can be
// opened at once afterwards, holds the token that was being written or the one
// before, and the identity it has had from the first moment on.
func TestKilledOwner(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 30
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	d := open(t)
	if err := os.RemoveAll(d.Path()); err != nil { // the first start is one of the moments
		t.Fatal(err)
	}
	var id, key, said string
	var tokens, silent int
	for round := range rounds {
		cmd := self(t, "own", d.Path(), said)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Now and then before it is known that it runs, else a while behind.
		pause := time.Duration(r.IntN(6_000)) * time.Microsecond
		lines, heard := bufio.NewScanner(stdout), 0
		if r.IntN(4) > 0 && lines.Scan() {
			said = lines.Text()
			heard++
		}
		killed := time.AfterFunc(pause, func() { cmd.Process.Kill() })
		for lines.Scan() { // to the end: all that it has said
			said = lines.Text()
			heard++
		}
		killed.Stop()
		cmd.Process.Kill()
		cmd.Wait()
		if strings.HasPrefix(said, "error") {
			t.Fatalf("round %d: the process says %s", round, said)
		}
		tokens += heard
		if heard == 0 {
			silent++
		}

		d, err := Open(d.Path())
		if err != nil {
			t.Fatalf("round %d: open: %v", round, err)
		}
		if err := d.Lock("the test"); err != nil {
			t.Fatalf("round %d: lock: %v", round, err)
		}
		tok, err := d.Token()
		// What was said is on the disk, and one more may be.
		if err != nil || tok.Note != "" || tok.Text != said && tok.Text != following(said) {
			t.Fatalf("round %d: token %.40q (%d bytes), said last %.40q, %v", round, tok.Text, len(tok.Text), said, err)
		}
		said = tok.Text
		if _, err := d.Flag("draining"); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		thisID, err := d.ID("")
		if err != nil || id != "" && thisID != id {
			t.Fatalf("round %d: id %q, was %q, %v", round, thisID, id, err)
		}
		thisKey, err := d.Identity()
		if err != nil || key != "" && string(thisKey) != key {
			t.Fatalf("round %d: another identity, %v", round, err)
		}
		id, key = thisID, string(thisKey)
		if n := temps(t, d); n != 0 {
			t.Fatalf("round %d: %d temporary files are left", round, n)
		}
		if round%20 == 19 { // everything anew
			if err := os.RemoveAll(d.Path()); err != nil {
				t.Fatal(err)
			}
			id, key, said = "", "", ""
		}
		d.Close()
	}
	t.Logf("%d deaths, %d of them before a token was written; %d tokens written", rounds, silent, tokens)
	if tokens < rounds/4 || silent == 0 { // a busy machine writes few before it is killed
		t.Error("nothing was proved")
	}
}

// following is the token that ownChild writes behind another: of another
// length, of one letter, and a line that a pipe takes whole.
func following(token string) string {
	n := len(token)*7%3900 + 13
	letter := byte('a')
	if token != "" {
		letter = 'a' + (token[0]-'a'+1)%26
	}
	return strings.Repeat(string(letter), n)
}

// ownChild is the process that is killed. It says each token when it is
// written, and goes on from the one that it is told.
func ownChild(dir, token string) int {
	fail := func(err error) int {
		fmt.Println("error", err)
		return 1
	}
	for {
		d, err := Open(dir)
		if err != nil {
			return fail(err)
		}
		if err := d.Lock("a process to be killed"); err != nil {
			return fail(err)
		}
		if _, err := d.ID(""); err != nil {
			return fail(err)
		}
		if _, err := d.Identity(); err != nil {
			return fail(err)
		}
		for i := range 10 {
			token = following(token)
			if err := d.WriteToken(token); err != nil {
				return fail(err)
			}
			fmt.Println(token)
			if err := d.SetFlag("draining", i%2 == 0); err != nil {
				return fail(err)
			}
		}
		d.Close()
	}
}
