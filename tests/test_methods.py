"""Methods by name, and what every method must keep to."""

import pytest
import torch
from torch import nn

from saccade.contracts import Features, Progress, View
from saccade.errors import UsageError
from saccade.methods.base import Facts, Method
from saccade.methods.build import METHODS, build_method, config_type, resolve_method


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.dim = 6
        self.layer = nn.Linear(3, self.dim)

    def forward(self, pixels: torch.Tensor) -> Features:
        return Features(self.layer(pixels.mean(dim=(2, 3))), self.layer(pixels.flatten(2).transpose(1, 2)), (8, 8))


def views(images: int) -> list[View]:
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(images, 3, 8, 8, generator=generator) for _ in range(2)]
    return [View("global", x, torch.zeros(images, 4), torch.arange(images) % 2) for x in pixels]


def test_unknown_name_suggests():
    for call in (
        lambda: config_type("dinoo"),
        lambda: resolve_method("dinoo", None, Facts(images=1, batch=1, steps=1)),
        lambda: build_method("dinoo", Pooled(), Pooled, None, seed=0),
    ):
        with pytest.raises(UsageError, match="dinoo") as caught:
            call()
        assert "did you mean 'dino'" in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_and_keeps_its_state(name):
    """Defaults resolve, a step moves the student, the backbone that is saved follows, state comes back whole."""
    config = resolve_method(name, config_type(name)(), Facts(images=64, batch=8, steps=50, labels=("a", "b")))
    method = build_method(name, Pooled(), Pooled, config, seed=0)
    assert isinstance(method, Method)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    named = dict(method.trainable())
    assert named.keys() <= dict(method.named_parameters()).keys()
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    for step in range(3):
        progress = Progress(step, 50, step, 50)
        out = method.step(views(8), progress)
        assert out.loss.shape == () and out.loss.dtype == torch.float32 and out.loss.isfinite()
        out.loss.backward()
        method.before_update(progress)
        optimizer.step()
        optimizer.zero_grad()
        method.after_update(progress)
        assert all(torch.isfinite(torch.as_tensor(v)).all() for v in out.logs.values())
        assert isinstance(method.diagnose({k: float(v) for k, v in out.logs.items()}), str | None)
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k in moved for k in named)
    saved = {id(p) for p in method.backbone.parameters()}
    assert any(id(p) in saved and k in moved for k, p in method.named_parameters())
    other = build_method(name, Pooled(), Pooled, config, seed=1)
    other.load_state_dict(method.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(method.state_dict().values(), other.state_dict().values()))
