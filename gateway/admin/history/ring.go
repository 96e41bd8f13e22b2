package history

import "iter"

// ring keeps the newest elements, up to a fixed number. It takes its memory when it is first needed, not all at once.
type ring[T any] struct {
	items []T
	next  int // where the next one goes once items is full
	size  int
}

func newRing[T any](size int) ring[T] { return ring[T]{size: size} }

func (r *ring[T]) add(item T) {
	if len(r.items) < r.size {
		r.items = append(r.items, item)
		return
	}
	r.items[r.next] = item
	r.next = (r.next + 1) % r.size
}

// all goes through the elements, oldest first.
func (r *ring[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		for i := range r.items {
			if !yield(r.items[(r.next+i)%len(r.items)]) {
				return
			}
		}
	}
}
