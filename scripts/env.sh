# Sourced by the other scripts: where the tools and libraries are that setup.sh found or unpacked.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
deps=$root/build/deps
if [ -d "$deps/usr" ]; then
  export PATH="$deps/usr/bin:$PATH" CMAKE_PREFIX_PATH="$deps/usr" CPLUS_INCLUDE_PATH="$deps/usr/include"
  export LD_LIBRARY_PATH="$deps/usr/lib/$(uname -m)-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
[ -d "${HOME:-/}/.cargo/bin" ] && PATH="$PATH:$HOME/.cargo/bin"
if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER="${CMAKE_CXX_COMPILER_LAUNCHER:-ccache}"
  export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1  # hits in another clone of the tree
fi

bold='' dim='' red='' green='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; fi
