#!/usr/bin/env bash
# cuda.sh fetch          the compiler for CUDA into build/cuda, where this machine has none
# cuda.sh ARCHS          that, then the program for these GPU architectures ("90a;120f"), or for those
#                        "here", or for "all" that Nibble knows
set -euo pipefail
. "$(dirname "$0")/env.sh"
cd "$root"
folder=build/cuda
list=scripts/cuda_packages.txt

new_enough() { [ "$(printf '%s\n12.8\n' "$1" | sort -V | head -n 1)" = 12.8 ]; }

installed() {  # a compiler of this machine's own
  local nvcc
  for nvcc in "${CUDA_HOME:-/nowhere}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    [ -x "$nvcc" ] && new_enough "$("$nvcc" --version | sed -nE 's/.*release ([0-9.]+).*/\1/p')" && return
  done
  return 1
}

fetch() {
  if installed || cmp -s "$list" "$folder/packages.txt"; then return; fi
  echo "${bold}Fetching the compiler for CUDA${plain} ${dim}(100 MB, into $folder)${plain}"
  rm -rf "$folder"
  mkdir -p "$folder"
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$folder" -r "$list"
  rm -r "$folder/venv"
  ln -s lib "$folder/nvidia/cu13/lib64"  # where nvcc looks
  cp "$list" "$folder/packages.txt"
}

archs_here() {  # of this machine's GPUs; all where it shows none
  local capability archs=
  for capability in $(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u); do
    case $capability in
      9.0) archs+=";90a" ;;
      12.*) archs+=";120f" ;;
      8.0 | 8.6 | 8.9) archs+=";${capability/./}" ;;
    esac
  done
  echo "${archs:1}"
}

fetch
case ${1:-here} in
  fetch) exit ;;
  here) archs=$(archs_here) ;;
  all) archs= ;;
  *) archs=$1 ;;
esac
setting=(-UNIBBLE_CUDA_ARCHS -UNIBBLE_CUDA_PTX)
[ -z "$archs" ] || setting=("-DNIBBLE_CUDA_ARCHS=$archs" -DNIBBLE_CUDA_PTX=OFF)
mkdir -p build
cmake --preset release "${setting[@]}" >build/configure-release.log 2>&1 || { cat build/configure-release.log >&2; exit 1; }
scripts/build.sh release nibble
