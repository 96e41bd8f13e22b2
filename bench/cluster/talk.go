package cluster

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"

	"fairlead/shared/link"
)

// Talk is a stream to the target that stays open.
type Talk struct{ s *link.Stream }

// Talk opens one, and has it answered once.
func (t *Tunnel) Talk(route string) (*Talk, error) {
	s, err := t.Open(link.OpenRequest{Route: route})
	if err != nil {
		return nil, err
	}
	d := &Talk{s}
	return d, d.Say()
}

// Say sends a word and waits for it to come back.
func (d *Talk) Say() error {
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
