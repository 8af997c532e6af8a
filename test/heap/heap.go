// Package heap measures for tests how much memory is reachable.
package heap

import (
	"math"
	"runtime"
	"sync"
	"sync/atomic"
)

// Reachable returns the bytes of the heap that are reachable. What others allocate while
// the collector runs counts as well.
func Reachable() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Gauge keeps the most that was reachable when something looked, while several
// goroutines allocate. Its zero value is ready for use.
type Gauge struct {
	looking sync.RWMutex
	mu      sync.Mutex
	most    uint64
}

// Pass counts one who passes, and has it wait while another goroutine looks. Whoever
// allocates comes by here, so that it does not do so while the collector runs: the busier
// the machine, the more that would be.
func (g *Gauge) Pass(count *atomic.Int64) int64 {
	g.looking.RLock()
	defer g.looking.RUnlock()
	return count.Add(1)
}

// Look measures. The least of some looks counts, for not everything passes.
func (g *Gauge) Look() {
	g.looking.Lock()
	defer g.looking.Unlock()
	least := uint64(math.MaxUint64)
	for range 3 {
		least = min(least, Reachable())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.most = max(g.most, least)
}

// Most returns the most that was reachable at a Look, in bytes.
func (g *Gauge) Most() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.most
}
