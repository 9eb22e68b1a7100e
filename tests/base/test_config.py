"""Settings: types, dotted keys, suggestions, and the way to disk and back."""

from dataclasses import dataclass, replace

import pytest

from saccade.base import config
from saccade.errors import UsageError


@dataclass(frozen=True)
class Views:
    local_count: int = 8
    scale: tuple[float, float] = (0.4, 1.0)
    size: int | None = None


@dataclass(frozen=True)
class Optim:
    lr: float | None = None
    grey: bool = False
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class ResolvedViews(Views):
    size: int


@dataclass(frozen=True)
class Both:
    views: Views = Views()
    optim: Optim = Optim()

    @property
    def sections(self):
        return {"views": self.views, "optim": self.optim}

    def with_sections(self, sections):
        return replace(self, **sections)


class Twice(Both):
    @property
    def sections(self):
        return {"a": self.views, "b": self.views}


def test_values_take_the_declared_type():
    found = config.override(
        Both(),
        ["views.local_count=4", "views.scale=[0.2, 0.9]", "optim.lr=1e-4", "grey=true", "name=007"],
    )
    assert found.views == Views(4, (0.2, 0.9), None)
    assert found.optim.lr == pytest.approx(1e-4)
    assert found.optim.grey is True
    assert found.optim.name == "007"


def test_none_and_back():
    found = config.override(Both(views=Views(size=3)), ["views.size=null"])
    assert found.views.size is None


def test_unknown_key_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean 'views\.local_count'"):
        config.override(Both(), ["views.local_counts=4"])


@pytest.mark.parametrize("pair", ["views.local_count=many", "views.local_count=1.5", "views.scale=[1]", "grey=3"])
def test_wrong_type_names_key_and_type(pair):
    with pytest.raises(UsageError, match=pair.split("=", maxsplit=1)[0].split(".")[-1]):
        config.override(Both(), [pair])


def test_pair_without_equals():
    with pytest.raises(UsageError, match="key=value"):
        config.override(Both(), ["views.local_count"])


def test_ambiguous_bare_key():
    with pytest.raises(UsageError, match="several sections"):
        config.override(Twice(), ["size=3"])


def test_round_trip_through_yaml(tmp_path):
    first = config.override(Both(), ["views.size=64", "optim.lr=0.001", "optim.name=a: b"])
    (tmp_path / "config.yaml").write_text(config.to_yaml(config.to_dict(first)))
    values = config.load(tmp_path / "config.yaml")
    assert config.section_from_dict("views", Views, values["views"]) == first.views
    assert config.section_from_dict("optim", Optim, values["optim"]) == first.optim


def test_a_resolved_section_has_a_value_for_every_setting():
    resolved = config.resolve_section(ResolvedViews, Views(local_count=2), size=32)
    assert (resolved.local_count, resolved.size) == (2, 32) and isinstance(resolved, ResolvedViews)
    with pytest.raises(UsageError, match=r"without a value[\s\S]*size"):
        config.resolve_section(ResolvedViews, Views())
