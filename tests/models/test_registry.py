"""Cards of backbones: names, capabilities, plug-ins of other packages."""

import subprocess
import sys

import pytest
import torch

from saccade.errors import UsageError
from saccade.models import registry
from saccade.models.backbones.build import build
from saccade.models.card import BackboneCard
from saccade.models.nn.attention import AttentiveNetwork, has_attention
from saccade.models.registry import CARDS, base_of, card_of, configured, for_axes, names, parse, with_width


def smallest(card: BackboneCard) -> str:
    """The narrowest network of a family at its first example."""
    return with_width(card.names[0], 32)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.family)
def test_capabilities_are_those_of_the_network(card):
    name = smallest(card)
    settings = parse(name)
    can, side = settings.capabilities, 4 * settings.unit_px
    network = build(name, size_px=side).eval()
    assert network.capabilities == can and registry.family_of(settings) is card
    assert can.has_attention == isinstance(network, AttentiveNetwork) == has_attention(network)
    assert can.batch_norm == any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()) or can.equivariant
    with torch.inference_mode():
        features = network(torch.zeros(1, 3, side, side))
    assert can.has_tokens == (len(features.grid) == 2)
    assert can.patch_px == getattr(settings, "patch", 0)
    for axes in (2, 3):
        if axes in can.axes:
            assert for_axes(settings, axes).axes == axes
        else:
            with pytest.raises(UsageError, match="for images only"):
                for_axes(settings, axes)


@pytest.mark.parametrize("name", names())
def test_every_name_belongs_to_one_family(name):
    assert [card.family for card in CARDS if card.parse(name)] == [card_of(name).family]
    assert parse(name).name == name


def test_a_width_is_put_where_the_grammar_has_it():
    assert with_width("vit_tiny_patch8_window7", 96) == "vit_tiny_patch8_w96_window7"
    assert with_width("swin_tiny_patch4_w48_window7", 96) == "swin_tiny_patch4_w96_window7"
    assert with_width("resnet18_c4_w32", 64) == "resnet18_c4_w64" and base_of("resnet18_c4_w32") == "resnet18"
    assert with_width("grid_tiny", 64) == "grid_tiny_w64"


def test_names_are_read_without_torch():
    code = "import sys; from saccade.models.registry import configured, names; names(); configured('vit_tiny_patch8')"
    assert subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"]).returncode == 0


PLUGIN = '''
"""A backbone in one file."""
from dataclasses import dataclass, replace
from torch import nn
from saccade.base.contracts import Features
from saccade.models.card import BackboneCard
from saccade.models.nn.network import Network
from saccade.models.settings import Capabilities, BackboneSettings

@dataclass(frozen=True)
class Mean3Settings(BackboneSettings):
    width: int = 16

    @property
    def capabilities(self):
        return Capabilities(axes=(2,))

    @property
    def unit_px(self):
        return 4

class Mean3(Network):
    def __init__(self, settings):
        super().__init__(settings, dim=settings.width, stride_px=4)
        self.conv = nn.Conv2d(settings.channels, settings.width, 4, stride=4)

    def forward(self, pixels):
        x = self.conv(pixels)
        tokens = x.flatten(2).transpose(1, 2)
        return Features(cls=tokens.mean(dim=1), tokens=tokens, grid=tuple(x.shape[2:]))

CARD = BackboneCard("mean3", {"mean3": Mean3Settings("mean3")}, Mean3, widen=lambda s, width: replace(s, width=width))
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a package with one backbone: a module and its entry point."""

    def install(code: str, target: str = "mean3_plugin:CARD") -> None:
        (tmp_path / "mean3_plugin.py").write_text(code)
        about = tmp_path / "mean3_plugin-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mean3-plugin\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[saccade.backbones]\nmean3 = {target}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry.installed_cards.cache_clear()

    yield install
    sys.modules.pop("mean3_plugin", None)
    registry.installed_cards.cache_clear()


def test_a_backbone_of_another_package(plugin):
    with pytest.raises(UsageError, match="unknown backbone"):
        parse("mean3")
    plugin(PLUGIN)
    assert "mean3" in names() and parse("mean3_w8").width == 8
    assert configured("mean3", channels=2, size_px=8).channels == 2
    network = build("mean3_w8", channels=2, size_px=8)
    assert network(torch.zeros(1, 2, 8, 8)).tokens.shape == (1, 4, 8) and network.config()["name"] == "mean3_w8"
    with pytest.raises(UsageError, match="unknown backbone 'mean4'"):
        parse("mean4")


@pytest.mark.parametrize(
    ("code", "target", "message"),
    [("raise RuntimeError('broken')", "mean3_plugin:CARD", "RuntimeError: broken"), ("X = 1", "mean3_plugin:X", "int")],
)
def test_a_plugin_that_does_not_load_is_named(plugin, code, target, message):
    plugin(code, target)
    with pytest.raises(UsageError, match=rf"plug-in mean3(.|\n)*{message}(.|\n)*mean3-plugin"):
        parse("mean3")
    assert parse("resnet18").width == 64  # built-in names do not need plug-ins
