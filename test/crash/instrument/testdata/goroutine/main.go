// Package goroutine begins an effect as a goroutine.
package goroutine

import "os"

func work() { go os.Remove("x") }
