"""Settings by --config, options and --set: which of them wins, and which are errors."""

import dataclasses

import pytest
import yaml
from typer.testing import CliRunner

from saccade.base import config
from saccade.cli import app
from saccade.cli.options import SettingsFlags
from saccade.cli.settings import merge_settings, read_config, request_run
from saccade.errors import UsageError
from saccade.study.design import StudyConfig

DATA = "synthetic:tissue?n=32&size=32"
SMALL = ["--steps", "2", "--batch", "8", "--size", "32", "--set", "dino.out_dim=32", "--set", "views.local_count=1"]


@pytest.fixture
def write(tmp_path):
    def write_yaml(values, name="settings.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(values))
        return tmp_path / name

    return write_yaml


def test_sections_and_dotted_keys_are_the_same(write):
    nested, dotted = write({"train": {"batch": 8}, "views": {"scale": [0.4, 1]}}), write({"train.batch": 8}, "b.yaml")
    assert read_config(nested) == {"train.batch": 8, "views.scale": [0.4, 1]}
    assert read_config(dotted) == {"train.batch": 8}


def test_names_of_version_0_1_are_read(write):
    path = write({"train": {"method": "masked"}, "masked": {"share": 0.75}})
    assert read_config(path) == {"train.method": "mae", "mae.mask_ratio": 0.75}


def test_options_win_over_the_file_and_set_over_options(write):
    flags = SettingsFlags(write({"train": {"batch": 1, "seed": 1, "keep": 1}}), ["train.batch=3"])
    merged = merge_settings(flags, {"train.batch": 2, "train.seed": 2, "data.label": None})
    assert merged == {"train.batch": "3", "train.seed": 2, "train.keep": 1}


@pytest.mark.parametrize("explicit", [{"train.epochs": 2.0}, {"train.minutes": 1.0}])
def test_an_explicit_length_replaces_that_of_the_file(explicit, write):
    path = write({"train": {"steps": 10, "epochs": 3.0, "batch": 4}})
    assert merge_settings(SettingsFlags(path), {}) == {"train.steps": 10, "train.batch": 4}
    assert merge_settings(SettingsFlags(path), explicit) == {"train.batch": 4} | explicit
    assert merge_settings(SettingsFlags(path, ["steps=5"]), {}) == {"train.batch": 4, "steps": "5"}


def test_an_explicit_recipe_replaces_the_views_of_the_file(write):
    values = {"train": {"method": "contrast"}, "data": {"source": "images", "grey": True}, "views": {"hue": 0.0}}
    flags = SettingsFlags(write(values))
    from_file = request_run(None, None, None, None, flags, {})
    assert (from_file.data, from_file.method) == ("images", "moco_v3")
    assert from_file.settings == {"data.grey": True, "views.hue": 0.0}
    changed = request_run("others", "dino", "resnet10", "natural", flags, {})
    assert (changed.data, changed.method, changed.recipe, changed.settings) == ("others", "dino", "natural", {})


def test_a_hierarchy_file_gives_its_levels(write):
    values = {
        "data": "slides",
        "method": "dino",
        "recipe": "stain",
        "hipt": {"region_px": 1024, "tile": "", "region": "runs/region"},
        "levels": {
            "tile": {"train.steps": 3, "data.mpp": {"typed": "0.25"}},
            "region": {"train.steps": 4},
            "slide": {"train.steps": 5},
        },
    }
    flags = SettingsFlags(write(values))
    request = request_run(None, None, None, None, flags, {"train.seed": 7})
    assert (request.data, request.backbone, request.recipe) == ("slides", "hipt", "stain")
    assert request.settings["tile.train.steps"] == 3 and request.settings["tile.data.mpp"] == config.TypedText("0.25")
    assert "region.train.steps" not in request.settings  # this level is given as a MODEL
    shorter = request_run(None, None, None, None, flags, {"train.steps": 2}).settings
    assert shorter["train.steps"] == 2 and not any(key.endswith(".train.steps") for key in shorter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "holds no settings"),
        ("a: [1\n", "not a YAML file"),
        ("train: {batsh: 8}\n", "did you mean 'train.batch'"),
        ("trane: {batch: 8}\n", "unknown setting 'trane.batch'"),
    ],
)
def test_mistakes_in_the_file(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    call = ["pretrain", DATA, "--out", str(tmp_path / "run"), "--config", str(tmp_path / "a.yaml")]
    error = CliRunner().invoke(app.app, call).exception
    assert isinstance(error, UsageError) and message in str(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.yaml"):
        read_config(tmp_path / "none.yaml")


def test_the_config_of_a_run_repeats_it(tmp_path):
    """Every setting of config.yaml is accepted, and gives the same run again."""

    def invoke(*words):
        result = CliRunner().invoke(app.app, [*map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    invoke("pretrain", DATA, "--out", first, "--backbone", "resnet10_w8", "--recipe", "grey", *SMALL)
    invoke("pretrain", "--out", second, "--config", first / "config.yaml")
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    assert (second / "model/model.safetensors").read_bytes() == (first / "model/model.safetensors").read_bytes()
    invoke("pretrain", "--out", third, "--config", first / "config.yaml", "--steps", "1", "--seed", "3")
    values = yaml.safe_load((third / "config.yaml").read_text())
    assert values["train"]["steps"] == 1 and values["train"]["seed"] == 3 and values["data"]["grey"] is True
    invoke("plan", "--config", first / "config.yaml", "--no-measure", "--memory", "4GB")
    invoke("finetune", first, DATA, "--out", tmp_path / "tuned", "--steps", "1", "--batch", "8", "--validation", "0")
    invoke("finetune", first, DATA, "--out", tmp_path / "again", "--config", tmp_path / "tuned" / "config.yaml")
    assert (tmp_path / "again/config.yaml").read_text() == (tmp_path / "tuned/config.yaml").read_text()


def test_compare_takes_the_settings_of_a_study(write, monkeypatch):
    calls = []
    monkeypatch.setattr("saccade.api.compare", lambda data, **options: calls.append((data, options["options"].study)))
    stored = StudyConfig(data=DATA, size_px=48, steps=7, recipe="grey", settings=("dino.out_dim=32",))
    values = {"study": config.section_to_dict(stored)}
    call = ["compare", "--out", "x", "--config", str(write(values)), "--flops", "1e9", "--set", "train.keep=1"]
    result = CliRunner().invoke(app.app, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (data, study), settings = calls[0], (*stored.settings, "train.keep=1")
    assert data == DATA and study == dataclasses.replace(stored, steps=0, flops=1e9, settings=settings)
    wrong = CliRunner().invoke(app.app, [*call[:4], str(write({"train": {"batch": 3}}))]).exception
    assert isinstance(wrong, UsageError) and "train.batch" in str(wrong)
