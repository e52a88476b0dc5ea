//go:build cuda

package cuda

import (
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/gpu/enginetest"
)

func opener(t *testing.T) func() gpu.Engine {
	return func() gpu.Engine {
		e, err := open("0")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
}

// fourier is the leak that convolution by float32 transforms has.
func fourier(tol enginetest.Tolerances) enginetest.Tolerances {
	tol.Leak = tol.Output / 20
	return tol
}

func TestEngineInFloat32(t *testing.T) { enginetest.Run(t, opener(t), fourier(enginetest.Float32())) }

func TestEngineInBFloat16ByTransforms(t *testing.T) {
	enginetest.Run(t, func() gpu.Engine {
		e := opener(t)().(*engine)
		e.transforms = true
		return e
	}, fourier(enginetest.BFloat16()))
}

func TestEngineInBFloat16(t *testing.T) { enginetest.Run(t, opener(t), fourier(enginetest.BFloat16())) }
