package storage

import "time"

// MinPart lets tests choose sizes.
const MinPart = minPart

// Hasten makes a Storage wait little between attempts, and idle for a silent peer.
func Hasten(s *Storage, idle time.Duration) *Storage {
	s.pause = pause{first: time.Millisecond, longest: 20 * time.Millisecond, idle: idle}
	return s
}

// PartName is the name of an unfinished Put's file.
func PartName(name, tag string) string { return partName(name, tagSuffix(tag)) }
