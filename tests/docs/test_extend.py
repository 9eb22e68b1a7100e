"""The recipes of docs/guides/extend.md: an installed package with all three cards trains and is evaluated."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import saccade

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "extend.md"
FILE = re.compile(r'^```python title="my_package/(\w+\.py)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
TOML = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
VERBS = """
import json, sys
import saccade
from saccade.evaluation.protocol import ProtocolConfig
from saccade.tasks.evaluate import EvaluateOptions

images, run = sys.argv[1:]
settings = {"model.size_px": 16, "train.batch": 8, "train.steps": 2, "vicreg.out_dim": 16}
backbone = "plainconv_w8"
planned = saccade.plan(images, backbone=backbone, method="vicreg", settings=settings)
saccade.pretrain(images, out=run, backbone=backbone, method="vicreg", settings=settings)
quick = EvaluateOptions(protocol=ProtocolConfig(fractions=(1.0,), repeats=1, bootstrap=20))
report = saccade.evaluate([run], images, options=quick)
print(json.dumps({"planned": bool(planned.text()), "rows": len(report.rows)}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The page's files and entry points, as pip installs them."""
    folder = tmp_path_factory.mktemp("extend")
    text = PAGE.read_text(encoding="utf-8")
    (folder / "my_package").mkdir()
    for name, code in FILE.findall(text):
        (folder / "my_package" / name).write_text(code)
    (folder / "my_package" / "__init__.py").write_text("")
    metadata = folder / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    groups = tomllib.loads(TOML.search(text)[1])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in groups.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def run(package: Path, *words: str) -> str:
    paths = [str(package), str(Path(saccade.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_three_files(package):
    assert sorted(path.stem for path in (package / "my_package").iterdir()) == [
        "__init__",
        "plain_conv",
        "text_image",
        "vicreg",
    ]


def test_a_package_with_all_three_trains_and_is_evaluated(package, tmp_path):
    rng = np.random.default_rng(0)
    for label, mean in (("dark", 60), ("bright", 180)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(12):
            rows = rng.integers(mean - 50, mean + 50, (16, 16))
            text = "\n".join(" ".join(map(str, row)) for row in rows)
            (tmp_path / "images" / label / f"{number}.textimage").write_text(text)
    output = run(package, "-c", VERBS, str(tmp_path / "images"), str(tmp_path / "run"))
    assert '"planned": true' in output and '"rows": 0' not in output
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "vicreg:" in config and "plainconv_w8" in config
    assert "vicreg" in run(package, "-m", "saccade", "pretrain", "--help")
