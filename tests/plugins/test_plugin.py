"""A package of someone else is installed: its file format, method and backbone work in every verb."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import saccade
from saccade.data import formats
from saccade.errors import UsageError

PACKAGE = Path(__file__).parent / "saccade-example-plugin"
VERBS = """
import json, sys
import saccade
from saccade.evaluation.protocol import ProtocolConfig
from saccade.tasks.evaluate import EvaluateOptions

images, run, picture, method, backbone = sys.argv[1:]
shown = saccade.show(images)
settings = json.loads(sys.stdin.read())
planned = saccade.plan(images, method=method, backbone=backbone, settings=settings)
saccade.pretrain(images, out=run, method=method, backbone=backbone, settings=settings)
problems = saccade.examine(run)
quick = EvaluateOptions(protocol=ProtocolConfig(fractions=(1.0,), repeats=1, bootstrap=20))
table = saccade.evaluate([run], images, options=quick)
options = saccade.AttendOptions(query="10,10")
attended = saccade.attend(run, images + "/dark/0.textimage", options=options)
attended.save(picture)
print(json.dumps({
    "images": shown.images, "types": shown.dtypes, "channels": shown.channels, "damaged": len(shown.damaged),
    "planned": bool(planned.text()), "rows": len(table.rows), "patches": list(attended.amap.grid),
    "kind": attended.amap.kind, "problems": [problem.name for problem in problems],
}))
"""
SMALL = {"train.steps": 2, "train.batch": 8, "model.size_px": 20}
DINO = {"dino.out_dim": 32, "views.local_count": 1}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Variables of a process that finds the package; nothing of this process is changed."""
    pytest.importorskip("hatchling", reason="builds the example package")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(PACKAGE)], check=True, timeout=120)
    source = str(Path(saccade.__file__).parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), source])}


def write_images(folder: Path) -> Path:
    """Two classes of grey squares, dark and bright."""
    rng = np.random.default_rng(0)
    for label, middle in (("dark", 60), ("bright", 180)):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(middle - 50, middle + 50, (20, 20))
            text = "\n".join(" ".join(map(str, row)) for row in pixels)
            (folder / label / f"{number}.textimage").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("method", "backbone", "settings", "kind"),
    [
        ("dino", "resnet10_w8", DINO, "similarity"),
        ("rotation", "smallformer_w16", {}, "attention"),
    ],
)
def test_every_verb_uses_the_cards_of_a_plugin(environment, tmp_path, method, backbone, settings, kind):
    images, picture = write_images(tmp_path / "images"), tmp_path / "attention.png"
    done = subprocess.run(
        [sys.executable, "-c", VERBS, str(images), str(tmp_path / "run"), str(picture), method, backbone],
        input=json.dumps(SMALL | settings),
        capture_output=True,
        text=True,
        env=environment,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["images"] == 24 and result["channels"] == {"1": 24} and result["damaged"] == 0
    assert result["planned"] and result["rows"] > 0 and len(result["patches"]) == 2
    assert result["kind"] == kind and result["problems"] == ["too few steps to learn anything"]
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_help_lists_the_method_of_a_plugin_without_importing_it(environment):
    code = (
        "import sys; from typer.testing import CliRunner; import saccade.cli.app\n"
        "print(CliRunner().invoke(saccade.cli.app.app, ['pretrain', '--help']).output)\n"
        "assert not {'torch', 'saccade_example_plugin.rotation'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("rotation "))
    assert line.endswith("Predict by how many quarter turns an image was rotated (RotNet)")


def test_without_the_package_the_format_is_unknown(tmp_path):
    with pytest.raises(saccade.errors.DataError, match="no images found"):
        saccade.open_source(write_images(tmp_path / "images"))


def test_a_plugin_cannot_take_the_suffix_of_another_format(monkeypatch):
    taken = formats.Format("mine", "image", (".new", ".png"), lambda data, name: None, "takes PNG")
    monkeypatch.setattr(formats, "installed_cards", lambda group, kind: (taken,))
    with pytest.raises(UsageError, match=r"claims suffixes of PNG\n  got:      \.png"):
        formats.formats.__wrapped__()


@pytest.mark.parametrize(
    ("kind", "endings", "said"), [("picture", (".x",), "unknown kind"), ("image", ("x",), "suffixes")]
)
def test_cards_that_mean_nothing_are_refused(kind, endings, said):
    with pytest.raises(UsageError, match=said):
        formats.Format("mine", kind, endings, "module:function", "")


def test_every_reader_of_the_table_exists():
    for card in formats.BUILT_IN:
        assert callable(card.load()), card.name
        assert card.load_parts() is None or callable(card.load_parts())
