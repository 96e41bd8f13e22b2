package cluster

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"

	"fairlead/shared/link"
)

// dialogue is a stream to the target that stays open.
type dialogue struct{ s *link.Stream }

// newDialogue opens one, and has it answered once.
func newDialogue(t *Tunnel) (*dialogue, error) {
	s, err := t.Open(link.OpenRequest{Route: RouteEcho})
	if err != nil {
		return nil, err
	}
	d := &dialogue{s}
	return d, d.say()
}

// say sends a word and waits for it to come back.
func (d *dialogue) say() error {
	word, back := make([]byte, 32), make([]byte, 32)
	_, _ = rand.Read(word) // never fails (crypto/rand)
	if _, err := d.s.Write(word); err != nil {
		return err
	}
	if _, err := io.ReadFull(d.s, back); err != nil {
		return err
	}
	if !bytes.Equal(word, back) {
		return fmt.Errorf("%w: %x came back for %x", ErrHash, back, word)
	}
	return nil
}
