package listener

import "time"

// Rest is the pause between two accepts, which cannot be seen through sockets without a look at the clock.
func (l *Listener) Rest(pause time.Duration, over <-chan struct{}) { l.rest(pause, over) }
