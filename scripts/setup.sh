#!/usr/bin/env bash
# Installs what packages.txt names and this machine lacks; removes nothing. setup.sh build|cuda|test
set -euo pipefail
. "$(dirname "$0")/env.sh"
stage=${1:-build}
log=$root/build/setup.log
mkdir -p "$root/build"

version_of() { "$1" --version 2>/dev/null | grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1; }

at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

has() {  # has CHECK: see packages.txt
  local what=${1#*:}
  case $1 in
    program:*)
      local found
      found=$(version_of "${what%%>=*}") && [ -n "$found" ] && at_least "$found" "${what#*>=}" ;;
    header:*)
      local condition=1
      [[ $what == *\?* ]] && condition=${what#*\?}
      printf '#include <%s>\n#if !(%s)\n#error too old\n#endif\n' "${what%%\?*}" "$condition" |
        g++ -std=c++20 -E -x c++ -o /dev/null - 2>/dev/null ;;
    python:*) python3 -c "import $what" 2>/dev/null ;;
    file:*) compgen -G "$what" >/dev/null ;;
  esac
}

missing() {  # the packages that this machine needs
  local package when check rest
  while read -r package when check rest; do
    case $package in '' | '#'*) continue ;; esac
    [ "$when" = build ] || [ "$when" = "$stage" ] || [ "$stage" = test ] || continue
    has "$check" || echo "$package"
  done <"$root/scripts/packages.txt"
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-remove --no-install-recommends \
    "$@" >>"$log" 2>&1
}

# A package that apt cannot install beside what is there: unpacked for this build alone.
unpack() {
  local names folder
  names=$(apt-get install -s --no-install-recommends "$@" 2>>"$log" | awk '/^Inst/ {print $2}')
  [ -n "$names" ] || return 1
  folder=$(mktemp -d)
  (cd "$folder" && apt-get download $names >>"$log" 2>&1) || return 1
  local file
  for file in "$folder"/*.deb; do dpkg -x "$file" "$deps"; done
  rm -r "$folder"
  echo "  $* cannot be installed beside other packages of this machine: unpacked in build/deps"
}

needed=$(missing)
[ -n "$needed" ] || exit 0
if ! command -v apt-get >/dev/null; then
  echo "This machine has no apt-get. Please install these (by their Debian 12 names), or newer ones:" >&2
  printf '  %s\n' $needed >&2
  exit 1
fi
if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
  echo "Some packages are missing and installing needs root. Please run as root, once:" >&2
  echo "  apt-get install -y --no-remove --no-install-recommends" $needed >&2
  exit 1
fi

: >"$log"
echo "${bold}Installing${plain}" $needed "${dim}(nothing is removed; log: build/setup.log)${plain}"
SECONDS=0
if ! apt_install $needed; then
  as_root apt-get update >>"$log" 2>&1 || true
  if ! apt_install $needed; then
    for package in $needed; do
      apt_install "$package" || unpack "$package" || true
    done
  fi
fi
. "$root/scripts/env.sh"
still=$(missing)
if [ -n "$still" ]; then
  echo "${red}Not found even after installing:${plain}" $still >&2
  tail -n 15 "$log" >&2
  exit 1
fi
echo "${green}Ready${plain} after $SECONDS s"
