"""Every code block of the docs is run, in one folder a page, with training shortened to a few steps."""

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from saccade.cli.app import app
from saccade.data.audit.contact_sheet import contact_sheet
from saccade.data.synthetic.images import TissueSource
from saccade.study import runner
from saccade.train.clock import StepClock

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*/*.md")) + [ROOT / "README.md"]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORT = ["--steps", "3", "--set", "train.batch=8", "--size", "32"]


def blocks(page: Path) -> list[tuple[str, str]]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    if page.name == "README.md":
        found = found[2:]  # the two set-up commands: CI runs them in a fresh environment
    return found


def shortened(words: list[str]) -> list[str]:
    """The same command with at most three steps of training."""
    if words[1] == "compare":
        few = {"--sizes": "16,32", "--steps": "2", "--seeds": "2", "--size": "32", "--batch": "8"}
        few |= {"--regimes": "supervised", "--backbones": "resnet10_w8,vit_micro_patch8_w32"}
        few |= {"--test-limit": "40", "--workers": "1"}
        kept = [w for i, w in enumerate(words[1:]) if w not in few and words[i] not in few]
        kept = [re.sub(r"n=\d+&size=\d+", "n=200&size=32", w) for w in kept]
        return kept + [word for pair in few.items() for word in pair]
    if words[1] not in ("pretrain", "finetune") or "--resume" in words:
        return words[1:]
    kept = []
    skip = False
    for word in words[1:]:
        if not skip and word not in ("--minutes", "--epochs", "--steps"):
            kept.append(word)
        skip = word in ("--minutes", "--epochs", "--steps")
    dino = words[1] == "pretrain" and "--method" not in words
    return [*kept, *SHORT, *(["--set", "dino.out_dim=32"] if dino else [])]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> Path:
    """A folder of labelled tiles with a manifest, as the guides assume."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("docs") / "tiles"
    folder.mkdir()
    source = TissueSource(64, size_px=48, seed=0, groups=8)
    rows = ["path,label,split,patient"]
    for index, record in enumerate(source.records):
        name = f"image-{index:04d}.png"
        Image.fromarray(source.read(index).pixels.transpose(1, 2, 0)).save(folder / name)
        rows.append(f"{name},{record.label},{record.split},{record.group}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    contact_sheet(source, folder.parent / "sheet.png", columns=4, rows=2)
    return folder


@pytest.fixture(scope="module")
def measured_once():
    """What a backbone costs here: measured by processes of their own for the first study, and known for the others."""
    real, known = runner._ask_new_worker, {}

    def ask(out, backbone, *kinds):
        if (backbone, kinds) not in known:
            known[backbone, kinds] = real(out, backbone, *kinds)
        return copy.deepcopy(known[backbone, kinds])

    return ask


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.stem)
def test_every_block_runs(page, tiles, measured_once, tmp_path, monkeypatch):
    (tmp_path / "tiles").symlink_to(tiles)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "_ask_new_worker", measured_once)
    monkeypatch.setattr("saccade.train.pretrain.steps_in", lambda *_: 3)
    monkeypatch.setattr("saccade.train.pretrain.clock_of", lambda train, *_: StepClock(train))
    scope: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, f"{page.name}", "exec"), scope)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "saccade" or words[1] == "quickstart":
                continue
            result = CliRunner().invoke(app, shortened(words), catch_exceptions=False)
            assert result.exit_code == 0, f"{line}\n{result.output}"


def test_every_option_is_in_the_reference():
    """docs/reference/cli.md is the help of every command; write it again with python tests/test_docs.py."""
    assert (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8") == reference()


def test_sizes_in_the_guide_are_what_the_arithmetic_says():
    from saccade.cost.flops import cost

    text = (ROOT / "docs/guides/labels-and-backbones.md").read_text(encoding="utf-8")
    found = re.findall(r"`(\w+)` ([\d.]+), ([\d.]+)", text)
    assert len(found) == 21
    for name, millions, billions in found:
        one = cost(name, size_px=224)
        assert f"{one.parameters / 1e6:.1f}" == millions and f"{one.flops / 1e9:.1f}" == billions, name


def reference() -> str:
    group: Any = typer.main.get_command(app)
    version = "`saccade --version` prints the version, `saccade COMMAND --help` what a command takes."
    lines = ["# Command line", "", (group.help or "").split("\n")[0], "", version, ""]
    for name, command in group.commands.items():
        lines += [
            f"## saccade {name}",
            "",
            (command.help or "").strip(),
            "",
            "| option | what it does | default |",
            "|---|---|---|",
        ]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                names = ", ".join(parameter.opts + parameter.secondary_opts)
                default = (
                    "" if parameter.default in (None, False, ...) or parameter.required else f"`{parameter.default}`"
                )
                lines.append(f"| `{names}` | {parameter.help or ''} | {default} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (ROOT / "docs/reference/cli.md").write_text(reference(), encoding="utf-8")
