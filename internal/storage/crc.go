package storage

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32cOf returns the CRC-32C of two texts that follow each other, from those
// of each and the length of the second in bytes: a multiplication by x^8n modulo the
// polynomial, as in zlib's crc32_combine.
func crc32cOf(first, second uint32, length int64) uint32 {
	// square[i] is the column of a matrix over GF(2) that moves a CRC on by one
	// bit, then two, four and so on.
	var square [32]uint32
	square[0] = crc32.Castagnoli
	for i := 1; i < 32; i++ {
		square[i] = 1 << (i - 1)
	}
	for n := uint64(length) * 8; n > 0; n >>= 1 {
		if n&1 == 1 {
			first = times(&square, first)
		}
		var next [32]uint32
		for i := range square {
			next[i] = times(&square, square[i])
		}
		square = next
	}
	return first ^ second
}

func times(matrix *[32]uint32, vector uint32) uint32 {
	var sum uint32
	for i := 0; vector != 0; i, vector = i+1, vector>>1 {
		if vector&1 == 1 {
			sum ^= matrix[i]
		}
	}
	return sum
}
