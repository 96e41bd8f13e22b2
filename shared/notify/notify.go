// Package notify tells several listeners about the same thing.
package notify

import (
	"slices"
	"sync"
)

// List is who is told. It is safe for concurrent use, holds no goroutine, and its zero value is empty.
type List[T any] struct {
	mu  sync.Mutex
	all []*listener[T] // never changed in place: Tell goes through it without the lock
}

type listener[T any] struct{ f func(T) }

// Add has f called with all that is told from now on. stop ends that and may be called more than once; f may still run, or
// be called once more by a Tell that had begun, when it returns.
func (l *List[T]) Add(f func(T)) (stop func()) {
	mine := &listener[T]{f: f}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(slices.Clone(l.all), mine)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all = slices.DeleteFunc(slices.Clone(l.all), func(each *listener[T]) bool { return each == mine })
	}
}

// Tell calls everybody, in the order in which they were added, in the caller's goroutine and with no lock held: they must
// be quick, and may call Add and their stop.
func (l *List[T]) Tell(what T) {
	l.mu.Lock()
	all := l.all
	l.mu.Unlock()
	for _, each := range all {
		each.f(what)
	}
}
