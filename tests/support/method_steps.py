"""Three updates of every method, on this process's share of the batch; prints losses and a sum of weights as JSON."""

import json
from pathlib import Path

import torch

from saccade import runtime
from saccade.base.contracts import Progress, View
from saccade.methods.base import DatasetFacts
from saccade.methods.registry import build_method, card_of, method_names, resolve_method
from saccade.models.backbones.build import build
from saccade.models.registry import parse

NETWORK, SIDE = "vit_micro_patch8_w32", 64


def views(name: str, images: int = 8) -> list[View]:
    """Views as the method asks for them, of images that are stripes of different directions and widths."""
    wanted = card_of(name).defaults
    counts = (wanted.get("views.global_count", 2), wanted.get("views.local_count", 2))
    generator = torch.Generator().manual_seed(0)
    slope = 2.0 if name == "relative_position" else 0.0  # stripes have no place
    found = []
    for role, count, side in (("global", counts[0], SIDE), ("local", counts[1], 32)):
        for _ in range(count):
            y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            stripes = [
                torch.sin((y * (i % 3) + x * (i // 3 + 1)) / 3.0) + slope * (y + 2 * x) / side for i in range(images)
            ]
            pixels = torch.stack(stripes)[:, None].repeat(1, 3, 1, 1)
            pixels = pixels + 0.1 * torch.randn(pixels.shape, generator=generator)
            found.append(View(role, pixels, torch.zeros(images, 4), torch.arange(images) % 2, torch.arange(images)))
    return found


def made(name: str, *, start: int = 0, network: str = NETWORK, **settings):
    facts = DatasetFacts(
        images=64, batch=8, steps=200, labels=("a", "b"), view_px=SIDE, unit_px=parse(network).unit_px, dim=32
    )
    config = resolve_method(name, card_of(name).config_cls(**settings), facts)
    student = build(network, size_px=SIDE, seed=start)
    return build_method(name, student, lambda: build(network, size_px=SIDE), config, seed=0)


def share(view: View) -> View:
    """The images of this process: the batch is dealt out in turn, as in the training loop."""
    own = slice(runtime.rank(), None, runtime.world_size())
    assert view.labels is not None and view.items is not None
    return View(view.role, view.pixels[own], view.box[own], view.labels[own], view.items[own])


def steps_of_all() -> dict[str, tuple[list[float], float]]:
    found = {}
    for name in method_names():
        method, losses = made(name), []
        parameters = [p for _, p in method.parameters_to_train()]
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        for step in range(3):
            progress = Progress(step, 200, step, 200)
            loss = method.step([share(view) for view in views(name)], progress).loss
            loss.backward()
            runtime.average_gradients(parameters)
            method.before_update(progress)
            optimizer.step()
            optimizer.zero_grad()
            method.after_update(progress)
            losses.append(float(runtime.mean_over_ranks(loss.detach())))
        weight = sum(float(p.detach().double().abs().sum()) for p in method.backbone.parameters())
        found[name] = (losses, weight)
    return found


if __name__ == "__main__":
    with runtime.processes(torch.device("cpu")):
        result = steps_of_all()
        rank = runtime.rank()
    # Threads of the group that outlive it abort the process now and then on its way out.
    threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in threads if "gloo" in name]
    assert not left, left
    if rank == 0:
        print(json.dumps(result))
