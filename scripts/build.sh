#!/usr/bin/env bash
# build.sh PRESET [TARGET...]: configures and builds; everything when no target is named.
set -euo pipefail
. "$(dirname "$0")/env.sh"
cd "$root"
preset=$1
shift
mkdir -p build
log=build/configure-$preset.log
cmake --preset "$preset" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
cmake --build --preset "$preset" ${1:+--target "$@"}
