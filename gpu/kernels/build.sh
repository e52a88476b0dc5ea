#!/usr/bin/env bash
# Compiles the CUDA kernels of this folder into kernels.fatbin, which package
# kernels embeds, and prints the settings that cgo needs:
#
#     eval "$(gpu/kernels/build.sh)"
#     go build -tags cuda ./...
#
# The compiler is, in this order: $CUDA_HOME, /usr/local/cuda, or the compiler
# wheels of PyPI (100 MB, fetched once by pip). Only nvcc, ptxas and cuda.h are
# used; no GPU and no driver is needed here. Where libcuda is not installed a
# stub with its symbols is made for the linker: at run time the driver's own
# libcuda.so.1 is loaded.
#
# The fatbin holds machine code for sm_80 and sm_90a (Hopper, with instructions
# that only it has; 90 means 90a) and PTX for what comes later;
# SCAVENGE_CUDA_TARGETS="90" makes only what one's own card needs, in a third of
# the time. Everything downloaded or made apart from the fatbin lies in
# ${SCAVENGE_CUDA_CACHE:-~/.cache/scavenge-cuda}.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SCAVENGE_CUDA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/scavenge-cuda}
mkdir -p "$cache"

# fetch_compiler unpacks the wheels into $cache/toolkit.
fetch_compiler() {
  local home=$cache/toolkit staging
  if [ ! -x "$home/bin/nvcc" ]; then
    staging=$(mktemp -d "$cache/staging.XXXXXX")
    python3 -m pip download -q --no-deps --only-binary=:all: \
      --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2010_x86_64 -d "$staging/wheels" \
      nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
      nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
    for wheel in "$staging"/wheels/*.whl; do
      python3 -m zipfile -e "$wheel" "$staging/all"
    done
    chmod +x "$staging"/all/nvidia/cu13/bin/* "$staging"/all/nvidia/cu13/nvvm/bin/*
    rm -rf "$home"
    mv "$staging/all/nvidia/cu13" "$home"
    rm -rf "$staging"
  fi
  echo "$home"
}

if [ -n "${CUDA_HOME:-}" ]; then
  home=$CUDA_HOME
elif [ -x /usr/local/cuda/bin/nvcc ]; then
  home=/usr/local/cuda
else
  home=$(fetch_compiler)
fi
[ -x "$home/bin/nvcc" ] || { echo "build.sh: no nvcc in $home/bin (from CUDA_HOME?)" >&2; exit 1; }

# Each file is compiled for each target on its own, as many at a time as there
# are processors, then the parts are bound into one fatbin.
read -ra targets <<< "${SCAVENGE_CUDA_TARGETS:-80 90a}"
targets=("${targets[@]/%90/90a}")
ptx=${targets[0]}
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
compile() { # source, kind (cubin or ptx), architecture, output
  "$home/bin/nvcc" -std=c++17 -O3 "-$2" \
    -gencode "arch=compute_$3,code=$([ "$2" = ptx ] && echo compute || echo sm)_$3" -o "$4" "$1"
}
export -f compile; export home
# One translation unit holds all operators: a module of one image, one load.
for f in "$here"/*.cu; do echo "#include \"$f\""; done > "$work/all.cu"
jobs=()
for arch in "${targets[@]}"; do
  compile "$work/all.cu" cubin "$arch" "$work/sm_$arch.cubin" >&2 & jobs+=($!)
done
compile "$work/all.cu" ptx "$ptx" "$work/compute_$ptx.ptx" >&2 & jobs+=($!)
for j in "${jobs[@]}"; do wait "$j"; done
images=()
for arch in "${targets[@]}"; do images+=("--image3=kind=elf,sm=$arch,file=$work/sm_$arch.cubin"); done
"$home/bin/fatbinary" -64 --create="$work/kernels.fatbin" "${images[@]}" "--image3=kind=ptx,sm=$ptx,file=$work/compute_$ptx.ptx"
mv "$work/kernels.fatbin" "$here/kernels.fatbin"

# What cgo needs: cuda.h behind the shim of gpu/cuda/include, and a libcuda to
# link against.
flags="-I$here/../cuda/include -I$home/include"
libs=""
if ! ldconfig -p 2>/dev/null | grep -q 'libcuda\.so '; then
  stub=$cache/stub
  mkdir -p "$stub"
  { # every function name that cuda.h mentions, as one address
    grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u |
      sed 's/.*/.globl &\n.type &,@function\n&:/'
    echo '.long 0'
    echo '.section .note.GNU-stack,"",@progbits'
  } > "$work/stub.s"
  ${CC:-gcc} -shared -nostdlib -Wl,-soname,libcuda.so.1 -o "$stub/libcuda.so" "$work/stub.s"
  libs="-L$stub"
fi
echo "export CGO_ENABLED=1 CGO_CFLAGS='-O2 -g $flags' CGO_LDFLAGS='-O2 -g $libs'"
