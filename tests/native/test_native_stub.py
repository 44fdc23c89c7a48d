"""The stub and the module name the same things, and csrc stays free of Python."""

from __future__ import annotations

import ast
from pathlib import Path

from obverse import _core

ROOT = Path(__file__).resolve().parents[2]


def test_native_stub_names_match_the_module() -> None:
    tree = ast.parse((ROOT / "bindings" / "obverse" / "_core.pyi").read_text())
    stub: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            stub[node.name] = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            stub[node.name] = set()
    public = {name for name in vars(_core) if not name.startswith("_")}
    assert public == set(stub)
    for name in public:
        value = getattr(_core, name)
        if isinstance(value, type):
            members = {m for m in vars(value) if not m.startswith("_")}
            assert members == {m for m in stub[name] if not m.startswith("_")}, name
            assert value.__doc__


def test_native_core_includes_no_python() -> None:
    sources = [*(ROOT / "csrc").rglob("*.hpp"), *(ROOT / "csrc").rglob("*.cpp")]
    assert len(sources) > 15
    for source in sources:
        includes = [line for line in source.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "Python" in line or "pybind" in line or "numpy" in line], source
