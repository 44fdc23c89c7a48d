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
PYTHONSAFEPATH= PYTHONPATH="$target" "$python" - "$target" <<'PY'
import sys
from pathlib import Path

import obverse
import obverse._core
from obverse.engine.records.models import resolve_model

home = Path(sys.argv[1])
assert Path(obverse.__file__).is_relative_to(home), obverse.__file__
assert Path(obverse._core.__file__).is_relative_to(home), obverse._core.__file__
model = Path(resolve_model("auto", "extraction"))
assert model.is_relative_to(home) and (model / "model.safetensors").stat().st_size > 1_000_000, model
assert list((home / "obverse/engine/report").rglob("*.j2")) or list((home / "obverse/engine/report").rglob("*.html")), "no report template"
print("wheel and sdist: built, installed into an empty folder, imported")
PY
