#!/usr/bin/env bash
# Everything CI runs. test.sh [STEP...] runs some of: style release python asan tsan fuzz neon cuda
# Each step's output goes to build/test-logs and is shown when the step fails.
set -uo pipefail
. "$(dirname "$0")/env.sh"
cd "$root"
logs=$root/build/test-logs
mkdir -p "$logs"
jobs=$(nproc)
passed=0 failed=0 summary=()

# What a step's log counts: ctest, pytest and our own PASS/FAIL lines; 1 for a step that counts nothing.
count() {  # count LOG STATUS -> "passed failed"
  local good=0 bad=0 line
  while read -r line; do
    if [[ $line =~ ([0-9]+)\ tests\ failed\ out\ of\ ([0-9]+) ]]; then
      bad=$((bad + BASH_REMATCH[1])) good=$((good + BASH_REMATCH[2] - BASH_REMATCH[1]))
    elif [[ $line =~ ^=*\ ?.*\ in\ [0-9.]+s ]]; then
      [[ $line =~ ([0-9]+)\ passed ]] && good=$((good + BASH_REMATCH[1]))
      [[ $line =~ ([0-9]+)\ failed ]] && bad=$((bad + BASH_REMATCH[1]))
      [[ $line =~ ([0-9]+)\ error ]] && bad=$((bad + BASH_REMATCH[1]))
    elif [[ $line == PASS\ * ]]; then
      good=$((good + 1))
    elif [[ $line == FAIL\ * ]]; then
      bad=$((bad + 1))
    fi
  done <"$1"
  if [ "$2" != 0 ] && [ $bad = 0 ]; then bad=1; fi
  if [ "$2" = 0 ] && [ $((good + bad)) = 0 ]; then good=1; fi
  echo "$good $bad"
}

step() {  # step "NAME" COMMAND...
  local name=$1 log status good bad mark
  log=$logs/${name// /-}.log
  shift
  SECONDS=0
  [ -t 1 ] && printf '  ...   %s' "$name"
  "$@" >"$log" 2>&1 </dev/null
  status=$?
  read -r good bad < <(count "$log" $status)
  passed=$((passed + good)) failed=$((failed + bad))
  mark="${green}ok${plain}    "
  [ "$bad" = 0 ] || mark="${red}FAILED${plain}"
  summary+=("$(printf '%s  %-32s %5d s  %4d passed  %d failed' "$mark" "$name" $SECONDS "$good" "$bad")")
  [ -t 1 ] && printf '\r'
  printf '%s  %-32s %5d s  %4d passed\n' "$mark" "$name" $SECONDS "$good"
  [ "$bad" = 0 ] || { tail -n 100 "$log"; printf '%s\n' "${dim}(all of it: ${log#"$root"/})${plain}"; }
  [ "$status" = 0 ]
}

format() {
  local file bad=0
  for file in $(find src tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh'); do
    clang-format-14 --dry-run -Werror "$file" 2>/dev/null || { echo "$file: make format would change it"; bad=1; }
  done
  return $bad
}

unit_tests() {  # unit_tests FOLDER [CTEST ARGUMENTS...]
  local folder=$1
  shift
  # Without address randomisation, which ThreadSanitizer cannot stand on some kernels.
  setarch -R ctest --test-dir "$folder" -j "$jobs" --output-on-failure --no-tests=error "$@"
}

python_tests() {  # python_tests [PYTEST ARGUMENTS...]
  local venv=build/venv
  if ! cmp -s tests/requirements.txt $venv/requirements.txt; then
    rm -rf $venv
    python3 -m venv $venv && $venv/bin/pip install -q --disable-pip-version-check -r tests/requirements.txt &&
      cp tests/requirements.txt $venv/ || return 1
  fi
  $venv/bin/python -B -m pytest -q -p no:cacheprovider "$@"
}

one_fuzz_target() {  # new finds go to build-fuzz/corpus, a crash to build-fuzz/crashes
  local name=$1 seeds=tests/fuzz/$1
  mkdir -p "build-fuzz/corpus/$name" build-fuzz/crashes
  [ -d "$seeds" ] || seeds=
  if "build-fuzz/fuzz/$name" -max_total_time=20 -timeout=10 -rss_limit_mb=3000 -print_final_stats=1 \
    -artifact_prefix="build-fuzz/crashes/$name-" "build-fuzz/corpus/$name" $seeds >"$logs/$name.log" 2>&1; then
    echo "PASS $name: $(grep -o 'number_of_executed_units: .*' "$logs/$name.log")"
  else
    tail -n 60 "$logs/$name.log"
    echo "FAIL $name"
  fi
}

fuzz() {
  export -f one_fuzz_target
  export logs
  find build-fuzz/fuzz -maxdepth 1 -name '*_fuzz' -printf '%f\n' | sort |
    xargs -P "$jobs" -I{} bash -c 'one_fuzz_target {}' >"$logs/fuzz-targets.log"
  cat "$logs/fuzz-targets.log"
  ! grep -q '^FAIL' "$logs/fuzz-targets.log"
}

run_style() {
  step "style limits" python3 -B scripts/check_style.py
  step "format" format
}

run_release() {
  step "build release" scripts/build.sh release && step "unit tests" unit_tests build
  step "licences of the crates" python3 -B scripts/crate_licenses.py --check
}

run_python() { step "tests over HTTP and of tools" python_tests tests; }

soak() {  # soak FOLDER: the concurrent clients, against a sanitizer's server
  step "soak ${1#build-}" setarch -R bash -c "$(declare -f python_tests); python_tests --nibble $1/nibble tests/soak_test.py -k hanging_up"
}

run_asan() {
  step "build asan" scripts/build.sh asan || return
  # The reference against itself, by far the slowest, is left to the plain build.
  GTEST_FILTER='-*/reference' step "unit tests asan" unit_tests build-asan -LE long
  soak build-asan
}

# What has threads of its own; of the engine on the pocket model, what has several clients.
run_tsan() {
  local tests=(base_test engine_test http_test server_test)
  step "build tsan" scripts/build.sh tsan nibble pocket_engine_test "${tests[@]}" || return
  step "unit tests tsan" unit_tests build-tsan -R "^($(IFS='|'; echo "${tests[*]}"))\$"
  step "clients tsan" setarch -R build-tsan/tests/pocket_engine_test '--gtest_filter=*Cancelled*:*ManyThreads*'
  soak build-tsan
}

run_fuzz() { step "build fuzz" scripts/build.sh fuzz fuzz_targets && step "fuzz 20 s each" fuzz; }

# The two longest tests under emulation beside all others.
emulated_tests() {
  local most='*/reference:*/cpu_exact:*/cuda' longest='*.Attention/cpu:*.Experts/cpu' first
  GTEST_FILTER=$longest unit_tests build-neon -R backend_test &
  first=$!
  GTEST_FILTER="-$most:$longest" unit_tests build-neon && wait $first
}

# Kernels for 64-bit ARM.
run_neon() {
  step "build neon" scripts/build.sh neon && step "unit tests neon" emulated_tests
}

# Kernels for a Hopper and a Blackwell. Their tests look for a GPU, also where there is no driver, and are
# skipped without one.
run_cuda() {
  step "compiler for CUDA" scripts/cuda.sh fetch || return
  step "build cuda" scripts/build.sh cuda backend_test lost_card_test || return
  step "unit tests cuda" build-cuda/tests/backend_test '--gtest_filter=*/cuda'
  step "lost card" build-cuda/tests/lost_card_test
}

start=$(date +%s)
for name in "${@:-style}" ; do
  declare -F "run_$name" >/dev/null || { echo "no step $name; steps: style release python asan tsan fuzz neon cuda" >&2; exit 2; }
done
[ $# -gt 0 ] || set -- style release python asan tsan fuzz neon cuda
for name in "$@"; do "run_$name"; done

printf '\n%sAll steps%s, %d s\n' "$bold" "$plain" $(($(date +%s) - start))
printf '%s\n' "${summary[@]}"
printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
