"""Training with labels: what it learns from, what it judges itself by, when it ends, what it leaves."""

import csv
import itertools
import json

import numpy as np
import pytest
import torch
import yaml

import saccade
from saccade.base.contracts import Record
from saccade.base.run_folder import read_metrics
from saccade.data.cache.image_cache import build_cache
from saccade.data.open import open_source
from saccade.errors import ContaminationError, DataError, ModelError, StorageError, UsageError
from saccade.methods.base import DatasetFacts
from saccade.methods.supervised import SupervisedConfig, resolve_supervised
from saccade.reporting.section_classifier import classifier_finding, classifier_section
from saccade.tasks.finetune import FinetuneOptions, FinetuneReport, measure, score, supervised_config
from saccade.train import checkpoint
from saccade.train import classifier as classifying
from saccade.train.classifier import load_classifier
from saccade.train.data_selection import divide, draw_nested
from saccade.train.resolve import check_config
from saccade.train.settings import DataConfig

DATA = "synthetic:tissue?n=320&size=32&groups=20"
SMALL = {"train.steps": 60, "train.batch": 16, "model.size_px": 32, "train.evaluate_every": 12}
SMALL |= {"data.validation": 0.2, "train.patience": 50}
NETWORK = "random:resnet10_w16"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "run"
    saccade.finetune(NETWORK, DATA, out=folder, settings=SMALL)
    return folder


def figures(run):
    return {row["metric"]: row for row in json.loads((run / "classifier.json").read_text())["rows"]}


def test_it_learns_and_leaves_every_file(run):
    found = figures(run)
    assert found["accuracy"]["mean"] > 0.3 > 2 / 8 and found["auroc"]["mean"] > 0.7
    assert all(row["low"] <= row["mean"] <= row["high"] for row in found.values())
    values = json.loads((run / "classifier.json").read_text())
    assert np.sum(values["confusion"]) == values["n_test"] and values["majority"] == pytest.approx(1 / 8)
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert len(rows) == values["n_test"] and right == pytest.approx(found["accuracy"]["mean"])
    page = (run / "report.html").read_text()
    assert "Supervised classifier" in page and f"{100 * found['accuracy']['mean']:.1f}\u00a0%" in page
    assert (run / "model" / "classifier.safetensors").exists() and (run / "config.yaml").exists()


def test_the_saved_classifier_gives_the_same_answers(run):
    classifier = load_classifier(run)
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    source = open_source(DATA)
    cache = build_cache(source, cache_px=32)
    number = {record.id: i for i, record in enumerate(cache.records)}
    chosen = np.array([number[row["path"]] for row in rows])
    scores = classifier.scores(cache, chosen, torch.device("cpu"), yaml_of(run)["train"]["precision"])
    said = [classifier.classes[int(i)] for i in scores.argmax(axis=1)]
    assert np.mean([a == row["predicted"] for a, row in zip(said, rows)]) > 0.98  # stored with five digits
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


def test_deeper_images_are_measured_with_the_range_of_the_model(tmp_path, monkeypatch):
    from PIL import Image

    import saccade.tasks.finetune

    rows = ["path,label,split"]
    for i in range(24):
        # The test part is darker as a whole, so that its own range is not the one of the training part.
        level = (2000, 30000)[i % 2] if i < 16 else (2000, 6000)[i % 2]
        pixels = level + np.random.default_rng(i).integers(0, 1500, (32, 32))
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},{'train' if i < 16 else 'test'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    settings = SMALL | {"train.steps": 2, "train.batch": 4}
    saccade.finetune(NETWORK, tmp_path, out=tmp_path / "run", settings=settings)
    shown = []
    look = classifying.full_view
    monkeypatch.setattr(classifying, "full_view", lambda cache, spec: shown.append(cache) or look(cache, spec))
    measure(tmp_path / "run", saccade.Quiet())
    classifier, (test,) = load_classifier(tmp_path / "run"), shown
    assert len(test) == 8 and (test.offset, test.scale) == (classifier.spec.offset, classifier.spec.scale)
    assert test.offset < 2100 and test.offset + test.scale > 31000
    # The same images among others have the same answers.
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").open()))
    everything = build_cache(open_source(tmp_path), cache_px=32)
    chosen = np.flatnonzero([record.split == "test" for record in everything.records])
    scores = classifier.scores(everything, chosen, torch.device("cpu"), "fp32")
    np.testing.assert_allclose(scores[:, 0], [float(row["a"]) for row in rows], atol=0.01)


def yaml_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def test_validation_groups_are_apart_and_all_are_remembered(run):
    record = json.loads((run / "data.json").read_text())
    source = open_source(DATA)
    groups = {r.id: r.group for r in source.records}
    seen = [item["id"] for item in record["files"]]
    learned, judged = seen[: record["used"] - record["validation"]], seen[record["used"] - record["validation"] :]
    assert record["validation"] == len(judged) > 0
    assert not {groups[i] for i in learned} & {groups[i] for i in judged}
    assert not {r.id for r in source.records if r.split == "test"} & set(seen)


def test_the_best_weights_are_kept(run):
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "val_balanced_accuracy" in line]
    assert [line["step"] for line in lines] == [0, 12, 24, 36, 48, 60]
    best = max(lines, key=lambda line: (line["val_balanced_accuracy"], -line["val_loss"]))
    about = json.loads((run / "model" / "config.json").read_text())["about"]
    assert about["step"] == best["step"] == checkpoint.load_named(run, checkpoint.BEST)["step"]


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    def full(*_):
        raise StorageError("the best checkpoint could not be written")

    monkeypatch.setattr(checkpoint, "save_named", full)
    console = saccade.api.Quiet()
    saccade.finetune(NETWORK, DATA, out=tmp_path / "run", settings=SMALL | {"train.steps": 4}, console=console)
    assert any("could not be written" in said and "training goes on" in said for said in console.messages)
    assert (tmp_path / "run" / "classifier.json").exists()


def test_it_stops_early_and_a_resumed_run_agrees(tmp_path):
    # A rate this high breaks the network after its first steps, so that the first evaluation stays the best.
    settings = SMALL | {"train.patience": 2, "optim.lr": 3.0, "optim.warmup_fraction": 0.0, "train.steps": 400}
    console = saccade.api.Quiet()
    saccade.finetune(NETWORK, DATA, out=tmp_path / "a", settings=settings, console=console)
    said = next(text for text in console.messages if "stopped early" in text)
    stopped = int(said.split("step ")[1].split(":")[0])
    best = checkpoint.load_named(tmp_path / "a", checkpoint.BEST)["step"]
    assert stopped < 400 and stopped - best == 2 * 12 and f"since step {best}" in said
    before = (tmp_path / "a" / "classifier.json").read_text()
    saccade.resume(tmp_path / "a")
    assert (tmp_path / "a" / "classifier.json").read_text() == before


def test_an_interrupted_run_resumes_bit_for_bit(run, tmp_path, monkeypatch):
    from saccade.train import loop

    def broken(*args):
        if args[4] == 21:  # the step
            raise KeyboardInterrupt
        return learn(*args)

    learn = loop.train_step
    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(KeyboardInterrupt):
        saccade.finetune(NETWORK, DATA, out=tmp_path / "b", settings=SMALL)
    monkeypatch.setattr(loop, "train_step", learn)
    saccade.resume(tmp_path / "b")
    for name in ("loss", "val_loss"):
        one, other = (
            [line[name] for line in read_metrics(folder / "metrics.jsonl") if name in line]
            for folder in (run, tmp_path / "b")
        )
        assert one == other
    assert (tmp_path / "b" / "predictions.csv").read_text() == (run / "predictions.csv").read_text()


def test_a_frozen_backbone_does_not_move(run, tmp_path):
    options = FinetuneOptions(frozen=True, augment="none")
    saccade.finetune(run, DATA, out=tmp_path / "f", options=options, settings=SMALL)
    from saccade.models.backbones.weights import load_model

    before, after = (load_model(folder).backbone.state_dict() for folder in (run, tmp_path / "f"))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert figures(tmp_path / "f")["accuracy"]["mean"] > 0.3
    with pytest.raises(UsageError, match="no effect with random weights"):
        saccade.finetune(NETWORK, DATA, out=tmp_path / "g", options=options, settings=SMALL)
    settings = SMALL | {"optim.layer_decay": 0.5}
    with pytest.raises(UsageError, match="layer_decay has no effect"):
        saccade.finetune(run, DATA, out=tmp_path / "h", options=options, settings=settings)


def test_weights_that_saw_the_test_part_are_refused_before_training(tmp_path):
    settings = {"train.steps": 2, "train.batch": 8, "dino.out_dim": 16, "views.local_count": 0, "model.size_px": 32}
    seen = saccade.pretrain(DATA, out=tmp_path / "p", backbone="resnet10_w8", settings=settings | {"data.split": "all"})
    with pytest.raises(ContaminationError, match="was pretrained on part of the test split"):
        saccade.finetune(seen, DATA, out=tmp_path / "f", settings=SMALL)
    assert not (tmp_path / "f").exists()
    options = FinetuneOptions(allow_overlap=True)
    report = saccade.finetune(seen, DATA, out=tmp_path / "f", options=options, settings=SMALL | {"train.steps": 2})
    assert report.protocol["overlap"] and "WARNING" in report.protocol["text"]


def test_what_cannot_be_trained_is_said(tmp_path, shared_source):
    with pytest.raises(DataError, match="two classes"):
        saccade.finetune(NETWORK, shared_source, out=tmp_path / "a", settings=SMALL)
    with pytest.raises(UsageError, match="did you mean 'strong'"):
        saccade.finetune(NETWORK, DATA, out=tmp_path / "b", options=FinetuneOptions(augment="stron"))
    run = supervised_config("resnet10_w8", FinetuneOptions(), {"data.validation": 0.0, "data.source": DATA})
    with pytest.raises(UsageError, match="needs validation images"):
        check_config(run)
    with pytest.raises(UsageError, match=r"data.validation has no effect on lejepa"):
        saccade.pretrain(DATA, out=tmp_path / "c", settings={"data.validation": 0.2})
    with pytest.raises(ModelError, match="no classifier in"):
        load_classifier(tmp_path)


@pytest.fixture
def shared_source(tmp_path):
    """A folder of images without any labels."""
    from PIL import Image

    folder = tmp_path / "plain"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.full((32, 32, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def records(counts, split=None):
    return [
        Record(f"{name}{i}", name, f"{name}-{i // 4}", split(name, i) if split else None)
        for name, n in counts.items()
        for i in range(n)
    ]


def test_draws_are_nested_and_show_every_class():
    items = records({"a": 90, "b": 9, "c": 1})
    everything = np.arange(100)
    draws = [set(draw_nested(items, everything, n, 3).tolist()) for n in (5, 20, 50, 100)]
    assert all(small < large for small, large in itertools.pairwise(draws))
    assert [len(d) for d in draws] == [5, 20, 50, 100]
    assert {items[i].label for i in draws[0]} == {"a", "b", "c"}
    assert sum(items[i].label == "a" for i in draws[2]) == pytest.approx(45, abs=2)
    assert draws[1] != set(draw_nested(items, everything, 20, 4).tolist())


class Cache:
    """As much of an ImageCache as ``divide`` asks for."""

    def __init__(self, items):
        self.records = items

    def __len__(self):
        return len(self.records)

    def select(self, chosen):
        return Cache([self.records[int(i)] for i in chosen])


def test_a_given_val_split_is_what_a_run_judges_by(monkeypatch):
    from saccade.train import data_selection

    monkeypatch.setattr(data_selection, "with_statistics", lambda cache: cache)
    monkeypatch.setattr(
        Cache, "select", lambda self, chosen: Cache([self.records[int(i)] for i in chosen]), raising=False
    )
    items = records({"a": 20, "b": 20}, split=lambda name, i: "val" if i >= 15 else "train")
    shares = divide(Cache(items), DataConfig(validation=0.3, limit=12), labels=True, seed=0)
    assert {r.split for r in shares.train.records} == {"train"} and len(shares.train) == 12
    assert {r.split for r in shares.validation.records} == {"val"} and len(shares.validation) == 10
    plain = divide(Cache(items), DataConfig(), labels=True, seed=0)
    assert plain.validation is None and len(plain.train) == 40


@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("vit_micro_patch8", "patch_embed.proj.weight", "blocks.5.mlp.fc2.bias", 7),
        ("resnet18_w8", "conv1.weight", "layer4.1.bn2.bias", 9),
    ],
)
def test_layers_are_counted_from_the_pixels_on(name, first, last, count):
    from saccade.models.backbones.build import build
    from saccade.train.optim import layer_numbers

    numbers = layer_numbers([n for n, _ in build(name, size_px=32).named_parameters()])
    assert numbers[first] == 0 and numbers[last] == max(numbers.values()) == count - 1
    assert sorted(set(numbers.values())) == list(range(count))


def test_layer_decay_slows_early_layers(tmp_path):
    from saccade.methods.supervised import Supervised
    from saccade.models.backbones.build import build
    from saccade.train.optim import make_optimizer, set_rates
    from saccade.train.settings import OptimConfig

    method = Supervised(build("vit_micro_patch8", size_px=32), SupervisedConfig(("a", "b")), seed=0)
    optimizer = make_optimizer(method, OptimConfig(layer_decay=0.5), torch.device("cpu"))
    set_rates(optimizer, 1.0, 0.1)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(method.named_parameters())
    assert rate[id(named["head.weight"])] == rate[id(named["network.blocks.5.attn.qkv.weight"])] == 1.0
    assert rate[id(named["network.blocks.0.attn.qkv.weight"])] == 0.5**5
    assert rate[id(named["network.patch_embed.proj.weight"])] == 0.5**6
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(named["head.weight"])] == 0.1 and decays[id(named["head.bias"])] == 0.0
    assert len(rate) == len(named)


def test_defaults_follow_the_situation():
    facts = {"images": 100, "batch": 10, "steps": 10, "labels": ("b", "a")}
    assert resolve_supervised(SupervisedConfig(), DatasetFacts(**facts)).classes == ("b", "a")
    with pytest.raises(DataError, match="two classes"):
        resolve_supervised(SupervisedConfig(classes=("a", "c")), DatasetFacts(**facts))
    with pytest.raises(UsageError):
        resolve_supervised(SupervisedConfig(label_smoothing=1.0), DatasetFacts(**facts))


def test_copies_on_both_sides_of_a_split_are_refused(tmp_path):
    from PIL import Image

    from saccade.api import CompareOptions
    from saccade.study.design import StudyConfig

    rows = ["path,label,split"]
    (tmp_path / "tiles").mkdir()
    for i in range(24):
        shown = 0 if i == 23 else i  # the last test image is the first training image
        pixels = np.random.default_rng(shown).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "tiles" / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]},{'train' if i < 12 else 'test'}")
    (tmp_path / "tiles" / "labels.csv").write_text("\n".join(rows) + "\n")
    settings = SMALL | {"train.steps": 1, "train.batch": 4}
    with pytest.raises(ContaminationError, match="share images or groups"):
        saccade.finetune(NETWORK, tmp_path / "tiles", out=tmp_path / "a", settings=settings)
    options = FinetuneOptions(allow_overlap=True)
    report = saccade.finetune(NETWORK, tmp_path / "tiles", out=tmp_path / "a", options=options, settings=settings)
    assert report.protocol["overlap"] and "WARNING" in (tmp_path / "a" / "report.html").read_text()
    study = CompareOptions(study=StudyConfig(size_px=32, batch=4, steps=1))
    names = ("resnet10_w8", "vit_micro_patch8_w32")
    with pytest.raises(ContaminationError, match="share images or groups"):
        saccade.compare(tmp_path / "tiles", out=tmp_path / "s", backbones=names, sizes=(4,), options=study)


def write_images(folder, splits):
    """Images of two classes, one for each entry of ``splits``; "?" is the test part without labels."""
    from PIL import Image

    folder.mkdir()
    rows = ["path,label,split"]
    for i, split in enumerate(splits):
        pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'' if split == '?' else 'ab'[i % 2]},{split.replace('?', 'test')}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize(
    "splits",
    [
        [""] * 18 + ["test"] * 6,
        ["fit"] * 12 + ["dev"] * 6 + ["test"] * 6,
        [""] * 18 + ["?"] * 6,
        ["train"] * 12 + [""] * 12,
        ["fit"] * 12 + ["dev"] * 12,
    ],
)
def test_no_image_that_was_learned_from_is_measured_on(tmp_path, splits):
    folder = write_images(tmp_path / "tiles", splits)
    settings = SMALL | {"train.steps": 1, "train.batch": 4}
    report = saccade.finetune(NETWORK, folder, out=tmp_path / "run", settings=settings)
    learned = {file["id"] for file in json.loads((tmp_path / "run" / "data.json").read_text())["files"]}
    measured = {row["path"] for row in csv.DictReader((tmp_path / "run" / "predictions.csv").open())}
    assert len(measured) >= 6 and not learned & measured and not report.protocol["overlap"]
    if "test" in splits:
        assert measured == {f"{i}.png" for i in range(18, 24)} and len(learned) == 18
    if "?" in splits:
        assert not {f"{i}.png" for i in range(18, 24)} & (learned | measured)


def test_a_part_by_name_that_holds_test_images_is_refused(tmp_path):
    from saccade.tasks import finetune

    folder = write_images(tmp_path / "tiles", ["fit"] * 12 + ["dev"] * 12)
    settings = SMALL | {"train.steps": 1, "train.batch": 4, "data.split": "fit"}
    with pytest.raises(ContaminationError, match="test split are also training data"):
        saccade.finetune(NETWORK, folder, out=tmp_path / "a", settings=settings)
    assert not (tmp_path / "a").exists()
    options = FinetuneOptions(allow_overlap=True)
    report = saccade.finetune(NETWORK, folder, out=tmp_path / "a", options=options, settings=settings)
    assert report.protocol["overlap"]
    with pytest.raises(ContaminationError, match="test split are also training data"):
        finetune.measure(tmp_path / "a", saccade.api.Quiet())


def test_a_test_part_of_one_class_has_no_auroc():
    from types import SimpleNamespace

    scores = np.random.default_rng(0).dirichlet((1, 1), 12).astype(np.float32)
    values = score(scores, ["a"] * 12, [None] * 12, SimpleNamespace(classes=("a", "b")))
    report = FinetuneReport(**values, protocol={"text": ""})
    row = next(row for row in report.rows if row["metric"] == "auroc")
    assert row == {"metric": "auroc", "mean": None, "low": None, "high": None}
    found = report.to_dict()
    json.dumps(found, allow_nan=False)
    assert report.to_pandas()["metric"].tolist() == ["accuracy", "balanced_accuracy", "auroc"]
    assert "<caption>Test metrics</caption>" in report._repr_html_()
    shown = [report.text(), str(classifier_section(found)), str(classifier_finding("run", found))]
    assert "auroc                  –" in shown[0] and "–" in shown[1]
    assert not any("nan" in text or "None" in text for text in shown)


def test_figures_over_few_groups_are_marked():
    rows = [{"metric": "accuracy", "mean": 0.5, "low": 0.25, "high": 0.75}]
    found = {"rows": rows, "n_test": 8, "majority": 0.5, "classes": ["a", "b"], "confusion": [[2, 2], [2, 2]]}
    for units, few in ((4, True), (6, False)):
        told = found | {"units_test": units, "protocol": {"text": ""}}
        text = FinetuneReport(**told).text()
        assert ("[25.0, 75.0] ?" in text) == ("means nothing" in text) == few
        page = str(classifier_section(told)).replace("\u00a0", " ")
        assert ("25.0 to 75.0 % ?" in page) == ("means nothing" in page) == few
        assert ("too few to conclude" in str(classifier_finding("run", told))) == few
