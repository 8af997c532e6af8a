package slurm

import (
	"os"
	"testing"

	"github.com/deckhand/deckhand/test/system"
)

func TestMain(m *testing.M) { os.Exit(system.Main(m)) }
