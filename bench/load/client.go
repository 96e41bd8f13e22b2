package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"fairlead/bench/peers"
	"fairlead/bench/proc"
)

// Runner starts the load's own processes.
type Runner struct {
	Exe string // the bench binary
	Dir string // for logs
}

// StartServer starts the target in a process of its own and returns its address. The caller stops it.
func (r Runner) StartServer(ctx context.Context) (*proc.Process, string, error) {
	p, err := proc.Start(ctx, proc.Spec{Path: r.Exe, Args: []string{"load-server"}, LogFile: filepath.Join(r.Dir, "load-server.log"), Piped: true})
	if err != nil {
		return nil, "", err
	}
	var said peers.Listening
	line, err := p.Line()
	if err == nil {
		err = json.Unmarshal(line, &said)
	}
	if err != nil {
		p.Stop()
		return nil, "", fmt.Errorf("start the target: %w", err)
	}
	return p, said.Address, nil
}

// Do runs a job that ends by itself.
func (r Runner) Do(ctx context.Context, job Job) (Outcome, error) {
	c, err := r.start(ctx, job)
	if err != nil {
		return Outcome{}, err
	}
	defer c.p.Stop()
	return c.outcome()
}

// Begin starts a job that lasts (Hold, Bulk) and waits until it is ready.
func (r Runner) Begin(ctx context.Context, job Job) (*Lasting, error) {
	c, err := r.start(ctx, job)
	if err != nil {
		return nil, err
	}
	e, err := c.event()
	if err == nil && !e.Ready {
		err = fmt.Errorf("the %s client was not ready before it ended", job.Kind)
	}
	if err != nil {
		c.p.Stop()
		return nil, err
	}
	return c, nil
}

// Lasting is a load client that runs until told to end. End or Stop must be called.
type Lasting struct{ p *proc.Process }

// End tells the client to end and returns what it saw.
func (c *Lasting) End() (Outcome, error) {
	defer c.p.Stop()
	if err := c.p.CloseInput(); err != nil {
		return Outcome{}, err
	}
	return c.outcome()
}

// Stop ends the client without asking for its outcome; after End it does nothing.
func (c *Lasting) Stop() { c.p.Stop() }

func (r Runner) start(ctx context.Context, job Job) (*Lasting, error) {
	order, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	p, err := proc.Start(ctx, proc.Spec{Path: r.Exe, Args: []string{"load-client"}, LogFile: filepath.Join(r.Dir, "load-client.log"), Piped: true})
	if err != nil {
		return nil, err
	}
	if err := p.Send(append(order, '\n')); err != nil {
		p.Stop()
		return nil, errors.Join(err, p.Err())
	}
	return &Lasting{p}, nil
}

func (c *Lasting) event() (event, error) {
	line, err := c.p.Line()
	if err != nil {
		return event{}, err
	}
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return event{}, fmt.Errorf("a load client said %.80q: %w", line, err)
	}
	return e, nil
}

func (c *Lasting) outcome() (Outcome, error) {
	e, err := c.event()
	if err != nil {
		return Outcome{}, err
	}
	if e.Outcome == nil {
		return Outcome{}, errors.New("a load client did not tell its outcome")
	}
	return *e.Outcome, nil
}
