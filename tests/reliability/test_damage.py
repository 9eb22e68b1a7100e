"""Damage to what is kept is noticed: checkpoints fall back, models and tables are refused, verify names the file."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from saccade.api import Quiet, pretrain, resume, verify
from saccade.base.contracts import InputSpec
from saccade.base.digests import FILE as DIGESTS
from saccade.base.digests import write_digests
from saccade.cli.app import app
from saccade.errors import DataError, SaccadeError, TrainingError
from saccade.features.table import FeatureTable, load_table, save_table
from saccade.models.backbones.build import build
from saccade.models.backbones.weights import load_model, save_model
from saccade.train import checkpoint

MUTANTS, FLIPS = 200, 50
SETTINGS = {
    "model.size_px": 16,
    "views.local_count": 2,
    "train.batch": 8,
    "train.steps": 6,
    "train.save_every": 2,
    "train.log_every": 1,
    "dino.out_dim": 16,
    "dino.head_hidden": 16,
    "dino.bottleneck": 8,
}


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


# --- checkpoints ---------------------------------------------------------------------------------


def network(width: int = 6) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(width)
    method = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.GELU(), torch.nn.Linear(width, 4))
    return method, torch.optim.AdamW(method.parameters())


def two_checkpoints(run: Path, identifier: str, width: int = 6) -> Path:
    """A run folder with the checkpoints of steps 1 and 2."""
    run.mkdir()
    (run / "env.json").write_text(json.dumps({"id": identifier}))
    method, optimizer = network(width)
    for step in (1, 2):
        method(torch.randn(3, 4)).square().sum().backward()
        optimizer.step()
        state = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save(run, step, state, keep=2)
    return run


def rewrite(folder: Path, change, draw: random.Random) -> None:
    """Change the state and record its digest, as a program with an error would."""
    state = torch.load(folder / checkpoint.FILE, weights_only=True)
    about = json.loads((folder / DIGESTS).read_text())["about"]
    torch.save(change(state, draw), folder / checkpoint.FILE)
    write_digests(folder, **about)


def with_nan(state, draw):
    tensors = list(state["method"].values()) + [v for s in state["optimizer"]["state"].values() for v in s.values()]
    values = draw.choice([tensor for tensor in tensors if tensor.ndim]).view(-1)
    values[draw.randrange(len(values))] = draw.choice([float("nan"), float("inf")])
    return state


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


def truncate(folder, draw):
    path = folder / checkpoint.FILE
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


MUTATIONS = {
    "bit of the state": lambda folder, draw: flip(folder / checkpoint.FILE, draw),
    "bit of the digest": lambda folder, draw: flip(folder / DIGESTS, draw),
    "truncated": truncate,
    "no digest": lambda folder, draw: (folder / DIGESTS).unlink(),
    "not finite": lambda folder, draw: rewrite(folder, with_nan, draw),
    "empty": lambda folder, draw: rewrite(folder, lambda state, _: {}, draw),
    "no dict": lambda folder, draw: rewrite(folder, lambda state, _: [1], draw),
    "missing key": lambda folder, draw: rewrite(
        folder, lambda state, draw: without(state, draw.choice(checkpoint.KEYS)), draw
    ),
    "another step": lambda folder, draw: rewrite(folder, lambda state, _: state | {"step": 1}, draw),
    "another run": lambda folder, draw: shutil.copytree(
        folder.parents[2] / "other" / "checkpoints" / folder.name, folder, dirs_exist_ok=True
    ),
    "another network": lambda folder, draw: rewrite(
        folder, lambda state, _: state | {"method": network(9)[0].state_dict()}, draw
    ),
    "another optimiser": lambda folder, draw: rewrite(
        folder,
        lambda state, _: (
            state
            | {
                "optimizer": {
                    "state": {
                        i: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, 2), "exp_avg_sq": torch.zeros(2, 2)}
                        for i in range(4)
                    },
                    "param_groups": network(6)[1].state_dict()["param_groups"],
                }
            }
        ),
        draw,
    ),
}


def test_200_damaged_checkpoints_fall_back_or_are_refused(tmp_path):
    run = two_checkpoints(tmp_path / "run", "a" * 16)
    two_checkpoints(tmp_path / "other", "b" * 16)
    intact = shutil.copytree(run, tmp_path / "intact")
    assert checkpoint.restore(run, *network()) == (2, {}, [])
    first = torch.load(checkpoint.folder_of(intact, 1) / checkpoint.FILE, weights_only=True)["method"]
    for number in range(MUTANTS):
        kind, mutate = list(MUTATIONS.items())[number % len(MUTATIONS)]
        shutil.rmtree(run)
        shutil.copytree(intact, run)
        mutate(checkpoint.folder_of(run, 2), random.Random(number))
        method, optimizer = network()
        step, _, messages = checkpoint.restore(run, method, optimizer)
        assert step == 1 and "step 2 is damaged" in messages[0], f"{kind}, mutant {number}"
        assert all(torch.equal(method.state_dict()[name], value) for name, value in first.items()), kind
        shutil.rmtree(checkpoint.folder_of(run, 1))
        with pytest.raises(TrainingError, match="step 2 is damaged"):
            checkpoint.restore(run, *network())


def test_a_checkpoint_of_0_1_is_used_and_that_is_reported(tmp_path):
    run = two_checkpoints(tmp_path / "run", "a" * 16)
    (run / "env.json").write_text("{}")
    for step in (1, 2):
        (checkpoint.folder_of(run, step) / DIGESTS).unlink()
    step, _, messages = checkpoint.restore(run, *network())
    assert step == 2 and "no SHA-256" in messages[0]


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reliability") / "run"
    return pretrain("synthetic:tissue?n=24&size=16", out=out, backbone="vit_micro_patch8_w8", settings=SETTINGS)


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def test_a_truncated_best_state_does_not_block_a_resume(run):
    best = run / "checkpoints" / checkpoint.BEST / checkpoint.FILE
    best.write_bytes(best.read_bytes()[:100])
    console = Quiet()
    resume(run, console=console)
    assert any("best" in message and "is damaged" in message for message in console.messages)
    assert any("continuing from step 6" in message for message in console.messages)


@pytest.mark.parametrize("leave_folder", [True, False])
def test_a_run_whose_checkpoints_are_gone_is_not_started_again(run, leave_folder):
    before = (run / "metrics.jsonl").read_bytes()
    for step in checkpoint.available(run):
        shutil.rmtree(checkpoint.folder_of(run, step))
    if not leave_folder:
        shutil.rmtree(run / "checkpoints")
    with pytest.raises(TrainingError, match="checkpoints of this run are missing"):
        resume(run)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_verify_checks_all_that_a_run_keeps(run):
    states = {str(Path(name).relative_to(run)): state for name, state in verify(run).items()}
    assert set(states.values()) == {"intact"}
    expected = {"model/model.safetensors", "model/config.json", "checkpoints/best/state.pt"}
    assert expected | {f"checkpoints/step-{step:06d}/state.pt" for step in checkpoint.available(run)} <= set(states)
    draw = random.Random(0)
    for name in sorted(states):
        data = (run / name).read_bytes()
        flip(run / name, draw)
        answer = CliRunner().invoke(app, ["verify", str(run)])
        damaged = [line for line in answer.output.splitlines() if line.startswith("damaged")]
        assert answer.exit_code == 1 and len(damaged) == 1 and damaged[0].endswith(name), name
        (run / name).write_bytes(data)
    answer = CliRunner().invoke(app, ["verify", str(run)])
    assert answer.exit_code == 0 and "damaged" not in answer.output


# --- models and tables ---------------------------------------------------------------------------


def test_50_flips_of_a_model_folder_are_detected(tmp_path):
    spec = InputSpec(3, 16, 0.0, 255.0, (0.5,) * 3, (0.5,) * 3)
    save_model(tmp_path / "intact", build("vit_micro_patch8_w8", channels=3, size_px=16), spec, about={})
    for number in range(FLIPS):
        draw = random.Random(number)
        folder = shutil.copytree(tmp_path / "intact", tmp_path / f"{number}")
        path = draw.choice(sorted(folder.iterdir()))
        flip(path, draw)
        assert [name for name, state in verify(folder).items() if state == "damaged"] == [str(path)]
        if path.name != "README.md":  # a model card may be edited
            with pytest.raises(SaccadeError):
                load_model(folder)
    assert load_model(tmp_path / "intact").name


def test_50_flips_of_a_feature_table_are_detected(tmp_path):
    n, path = 30, tmp_path / "table.parquet"
    features = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    columns = [["a", "b"] * (n // 2), [None] * n, ["train"] * n, ["0" * 64] * n]
    save_table(path, FeatureTable(features, [str(i) for i in range(n)], *columns, model="model", about={"spec": {}}))  # type: ignore[call-arg]
    data = path.read_bytes()
    assert verify(path) == {str(path): "intact"} and np.array_equal(load_table(path).features, features)
    for number in range(FLIPS):
        path.write_bytes(data)
        flip(path, random.Random(number))
        with pytest.raises(DataError):
            load_table(path)
        answer = CliRunner().invoke(app, ["verify", str(path)])
        assert answer.exit_code != 0 and (answer.exit_code == 1 or answer.exception is not None)
