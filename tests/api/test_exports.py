"""The public interface: names exist, types of public functions are exported, docs import nothing else."""

import inspect
import re
import subprocess
import sys
import typing
from importlib import metadata
from pathlib import Path

import pytest

import saccade

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", saccade.__all__)
def test_exported_name(name):
    exported = getattr(saccade, name)
    assert callable(exported) and inspect.getdoc(exported), f"{name} has no docstring"


def test_names_are_listed_once():
    stub = (ROOT / "src/saccade/__init__.pyi").read_text().splitlines()
    public = [line.rpartition(" as ")[2] for line in stub if line.startswith("from ")]
    assert sorted(public) == saccade.__all__ and len(set(public)) == len(public)
    assert not any((ROOT / "src/saccade" / name).is_dir() for name in public), "a package of that name hides it"
    assert not any((ROOT / "src/saccade" / f"{name}.py").is_file() for name in public), "a module hides it"
    assert set(saccade.__all__) <= set(dir(saccade))


def _parts(annotation):
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


@pytest.mark.parametrize("name", [name for name in saccade.__all__ if inspect.isfunction(getattr(saccade, name))])
def test_types_of_public_functions_are_exported(name):
    """Whatever a verb takes or returns can be named by its caller."""
    function = getattr(saccade, name)
    if not function.__module__.startswith(("saccade.api", "saccade.tasks")):
        pytest.skip("not a verb of the command line")
    exported = {getattr(saccade, public) for public in saccade.__all__}
    for annotation in typing.get_type_hints(function).values():
        for part in _parts(annotation):
            if isinstance(part, type) and part.__module__.startswith("saccade."):
                assert part in exported, f"{name}: {part.__name__} is not exported"


def test_errors_are_exported():
    from saccade import errors

    tree = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert {error.__name__ for error in tree} <= set(saccade.__all__)


def test_docs_import_from_saccade_only():
    pages = [*(ROOT / "docs").glob("*/*.md"), ROOT / "README.md"]
    inner = [
        f"{page.name}: {line}"
        for page in pages
        for line in re.findall(r"^(?:from|import) saccade\.\S+.*", page.read_text(), re.M)
    ]
    assert not inner


def test_import_is_quick_and_typed():
    code = "import sys, saccade; assert not {'torch', 'numpy', 'yaml'} & set(sys.modules); saccade.Tiling"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (Path(saccade.__file__).parent / "py.typed").is_file()


def test_the_version_is_in_one_place():
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
    assert metadata.version("saccade") == saccade.__version__
