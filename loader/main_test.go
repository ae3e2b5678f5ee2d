package loader

import (
	"testing"

	"github.com/sluice-lb/sluice/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
