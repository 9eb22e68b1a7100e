"""Cards of methods: those of the package, and one that an installed package brings by an entry point."""

import subprocess
import sys

import pytest

from saccade.base.version_0_1 import METHODS as METHODS_OF_0_1
from saccade.errors import UsageError
from saccade.methods import registry
from saccade.methods.registry import card_of, describe, method_names

PLUGIN = """\
\"\"\"Predict zero: a method of another package.

More text.
\"\"\"

from dataclasses import dataclass, replace

from saccade.methods.base import MethodCard, PeakLR
from saccade.methods.same_image import CARD as OTHER


@dataclass(frozen=True)
class ZeroConfig:
    weight: float | None = None


def resolve(config, facts):
    return replace(config, weight=config.weight or 1.0)


CARD = MethodCard(
    name="zero", config_cls=ZeroConfig, resolve=resolve, cls=OTHER.cls, peak_lr=PeakLR(transformer=1e-3, cnn=1e-2)
)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package with a method of its own, as pip leaves it in site-packages."""
    (tmp_path / "zero_method.py").write_text(PLUGIN)
    info = tmp_path / "zero-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zero\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[saccade.methods]\nzero = zero_method:CARD\nbroken = zero_method:NOTHING\ndino = zero_method:CARD\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for cached in (registry._third_party, registry.card_of):
        cached.cache_clear()
    yield
    for cached in (registry._third_party, registry.card_of):
        cached.cache_clear()
    sys.modules.pop("zero_method", None)


def test_the_card_of_every_method_has_its_name():
    assert [card_of(name).name for name in method_names()] == list(method_names())


def test_every_method_has_a_description_of_one_line():
    for name in method_names():
        assert 20 < len(describe(name)) < 100 and "\n" not in describe(name)


def test_descriptions_need_no_torch():
    code = (
        "import sys; from saccade.methods.registry import describe, method_names\n"
        "assert all(describe(name) for name in method_names())\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_method_of_another_package_is_one_like_others(plugin):
    assert "zero" in method_names()
    assert describe("zero") == "Predict zero: a method of another package" and "zero_method" not in sys.modules
    assert card_of("zero").config_cls().weight is None
    assert card_of("dino").config_cls.__name__ == "DinoConfig"  # names of this package are not replaced


def test_an_entry_point_that_cannot_be_loaded_is_named(plugin):
    with pytest.raises(UsageError, match=r"plug-in broken .* cannot be loaded"):
        card_of("broken")


def test_names_of_version_0_1_are_aliases():
    assert {old: card_of(old).name for old in METHODS_OF_0_1} == METHODS_OF_0_1
    assert set(METHODS_OF_0_1.values()) < set(method_names())
