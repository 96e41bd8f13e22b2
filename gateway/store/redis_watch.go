package store

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	quiet    = 15 * time.Second // without an event, after which the connection is tried
	pongWait = 2 * time.Second
)

// Watch is as in Store.
func (r *Redis) Watch(ctx context.Context, tell func(Event)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.stop, cancel)()
	missed, pause := false, firstPause
	for ctx.Err() == nil {
		began := time.Now()
		if r.subscribe(ctx, missed, tell) && time.Since(began) > lastPause {
			pause = firstPause
		}
		missed = true
		timer := time.NewTimer(jittered(pause))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		pause = min(2*pause, lastPause)
	}
	return nil
}

// subscribe tells of events until the connection breaks, or ctx ends. It says whether there was one.
func (r *Redis) subscribe(ctx context.Context, missed bool, tell func(Event)) (was bool) {
	channel := r.link.Load().client.Subscribe(ctx, r.keys.channel())
	defer channel.Close()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = channel.Close() // ends what waits for an event; an error says that it is closed
	})
	defer func() {
		if !stop() {
			<-closed
		}
	}()
	wait, asked := r.cfg.CallTimeout, false
	for ctx.Err() == nil {
		got, err := channel.ReceiveTimeout(ctx, wait)
		if err != nil {
			if !was || asked || !timedOut(err) || channel.Ping(ctx) != nil {
				return was
			}
			wait, asked = pongWait, true
			continue
		}
		wait, asked = quiet, false
		switch got := got.(type) {
		case *redis.Subscription:
			if missed || was { // or go-redis has subscribed anew by itself
				tell(Event{Kind: Missed})
			}
			was = true
		case *redis.Message:
			var e Event
			if json.Unmarshal([]byte(got.Payload), &e) == nil && e.Kind != "" {
				tell(e)
			}
		}
	}
	return was
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
