// Package value hands an effect to somebody else.
package value

import "os"

func work(each func(func(string) error)) { each(os.Remove) }
