package link

import "sync/atomic"

// Budget bounds memory that several windows share: of a tunnel, a tenant, the process. Budgets form a chain; what is taken
// from one is taken from all above it. A nil Budget has no bound. It covers what windows grow beyond their initial size;
// the initial windows are bounded by the number of streams.
type Budget struct {
	parent *Budget
	limit  atomic.Int64
	used   atomic.Int64
}

// NewBudget makes a budget of limit bytes under parent, which may be nil.
func NewBudget(limit int64, parent *Budget) *Budget {
	b := &Budget{parent: parent}
	b.limit.Store(limit)
	return b
}

// SetLimit changes the bound for what is taken from now on. What is taken already stays so.
func (b *Budget) SetLimit(limit int64) { b.limit.Store(limit) }

// Limit is the bound, in bytes.
func (b *Budget) Limit() int64 { return b.limit.Load() }

// Used is the number of bytes taken.
func (b *Budget) Used() int64 { return b.used.Load() }

// take reserves n bytes in the whole chain, or nothing.
func (b *Budget) take(n int64) bool {
	if b == nil {
		return true
	}
	if b.used.Add(n) > b.limit.Load() || !b.parent.take(n) {
		b.used.Add(-n)
		return false
	}
	return true
}

func (b *Budget) give(n int64) {
	for ; b != nil; b = b.parent {
		b.used.Add(-n)
	}
}
