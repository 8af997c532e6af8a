package storage

import "sync"

// minPart is the size of a part of a large file, and of the smallest file that
// has more than one.
const minPart = 16 << 20

// part is one piece of a file. Whoever has claimed it fills it from at to end.
type part struct {
	at, end int64 // end is -1 when the size of the object is not known
	begin   int64
	index   int
	state   partState
}

type partState byte

const (
	missing partState = iota
	claimed
	filled
)

// plan says which parts of a file are there. Only the claimer of a part reads
// or moves its at without the lock.
type plan struct {
	mu      sync.Mutex
	changed *sync.Cond
	running bool  // workers are under way
	size    int64 // -1 until the end was seen
	parts   []*part
	front   int   // every part before it is filled
	bytes   int64 // written
}

// newPlan divides size bytes; partSize may be anything when there is one part.
func newPlan(size, partSize int64) *plan {
	p := &plan{size: size}
	p.changed = sync.NewCond(&p.mu)
	if size <= 0 || partSize >= size {
		p.parts = []*part{{end: size}}
		return p
	}
	for at := int64(0); at < size; at += partSize {
		p.parts = append(p.parts, &part{at: at, begin: at, end: min(at+partSize, size), index: len(p.parts)})
	}
	return p
}

// claim takes the first part that is missing; nil when there is none.
func (p *plan) claim() *part {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.parts[p.front:] {
		if q.state == missing {
			q.state = claimed
			return q
		}
	}
	return nil
}

// unclaimed says whether claim would find a part.
func (p *plan) unclaimed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.parts[p.front:] {
		if q.state == missing {
			return true
		}
	}
	return false
}

// release gives back a part that was not filled.
func (p *plan) release(q *part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.state = missing
}

// finish marks a part as filled and claims the one after it, if it is missing
// from its beginning and ends before the given offset; nil if not.
func (p *plan) finish(q *part, before int64) *part {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.state = filled
	for p.front < len(p.parts) && p.parts[p.front].state == filled {
		p.front++
	}
	p.changed.Broadcast()
	if q.index+1 == len(p.parts) {
		return nil
	}
	next := p.parts[q.index+1]
	if next.state != missing || next.at != next.begin || next.end > before {
		return nil
	}
	next.state = claimed
	return next
}

// advance moves a part on by n bytes.
func (p *plan) advance(q *part, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.at += n
	p.bytes += n
	p.changed.Broadcast()
}

// bound ends a part of unknown length where it is.
func (p *plan) bound(q *part) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q.end, p.size = q.at, q.at
}

func (p *plan) written() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

func (p *plan) whole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.front == len(p.parts)
}

func (p *plan) start() { p.setRunning(true) }
func (p *plan) stop()  { p.setRunning(false) }

func (p *plan) setRunning(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = on
	p.changed.Broadcast()
}

// wait returns how many bytes are there without a gap, once that is more than
// seen, all parts are filled or the workers have stopped.
func (p *plan) wait(seen int64) (there int64, running bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.front == len(p.parts) {
			return p.size, p.running
		}
		if there = p.parts[p.front].at; there > seen || !p.running {
			return there, p.running
		}
		p.changed.Wait()
	}
}
