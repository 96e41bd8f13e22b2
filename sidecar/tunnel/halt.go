package tunnel

// halt lets the whole pool give up, and says whether it had not yet.
func (p *Pool) halt(err error) (first bool) {
	p.mu.Lock()
	select {
	case <-p.halted:
		p.mu.Unlock()
		return false
	default:
	}
	close(p.halted)
	p.mu.Unlock()
	p.givenUp.Inc()
	p.config().GaveUp(err)
	return true
}

// unhalt lets all slots try again, if the pool has given up.
func (p *Pool) unhalt() {
	p.mu.Lock()
	select {
	case <-p.halted:
		p.halted = make(chan struct{})
	default:
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	for _, s := range p.list() {
		notify(s.again)
	}
}

func (p *Pool) haltedNow() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.halted
}

func (p *Pool) isHalted() bool {
	select {
	case <-p.haltedNow():
		return true
	default:
		return false
	}
}

// hopeless says whether the pool has given up, or every slot on its own: no tunnel comes up before somebody asks for it.
func (p *Pool) hopeless() bool {
	if p.isHalted() {
		return true
	}
	given := 0
	for _, s := range p.list() {
		select {
		case <-s.done:
			continue
		default:
		}
		if s.state() != Failed {
			return false
		}
		given++
	}
	return given > 0
}

// Reconnect tries again at once, also after having given up.
func (p *Pool) Reconnect() {
	p.unhalt()
	for _, s := range p.list() {
		notify(s.again)
	}
}
