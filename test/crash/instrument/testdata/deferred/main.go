// Package deferred defers an effect.
package deferred

import "os"

func work() { defer os.Remove("x") }
