#!/bin/sh
# Install the wheel into an empty folder, without dependencies, and use it from there: what ships must be whole.
set -eu
python=$1
dist=$2
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT
"$python" -m pip --disable-pip-version-check install -qq --no-deps --target "$target" "$dist"/*.whl
ls "$dist"/*.tar.gz >/dev/null
cd "$target"
# -S leaves out the environment's own start-up files: its editable install of this very checkout would win otherwise.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -S - "$target" "$site" <<'PY'
import sys
from pathlib import Path

home = Path(sys.argv[1])
sys.path[:0] = sys.argv[1:3]

import obverse
import obverse._core
from obverse.engine.records.models import resolve_model

assert Path(obverse.__file__).is_relative_to(home), obverse.__file__
assert Path(obverse._core.__file__).is_relative_to(home), obverse._core.__file__
model = Path(resolve_model("auto", "extraction"))
assert model.is_relative_to(home) and (model / "model.safetensors").stat().st_size > 1_000_000, model
report = home / "obverse/engine/report"
assert (report / "page.html.j2").exists() and (report / "page.css").exists(), "the report's template is missing"
assert (home / "obverse/py.typed").exists() and (home / "obverse/_core.pyi").exists(), "type information is missing"
print("wheel and sdist: built, installed into an empty folder, imported")
PY
