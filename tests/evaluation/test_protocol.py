"""Evaluation: agrees with brute force, keeps groups apart, gives chance where there is nothing."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from saccade.base.contracts import Record
from saccade.errors import ContaminationError, DataError, EvaluationError, UsageError
from saccade.evaluation import contamination, knn, metrics, probes, protocol, tables
from saccade.features import baselines
from saccade.features import table as store
from saccade.features.table import FeatureTable, load_table, save_table

RNG = np.random.default_rng(0)


def table(features, labels, groups=None, prefix="x") -> FeatureTable:
    n = len(features)
    return FeatureTable(
        np.asarray(features, np.float32),
        [f"{prefix}{i}" for i in range(n)],
        [str(label) for label in labels],
        list(groups) if groups is not None else [None] * n,
        [None] * n,
        [f"{prefix}-hash-{i}" for i in range(n)],
    )


def blobs(n, classes=3, spread=1.0, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return np.eye(classes, dim)[labels] * 3 + spread * rng.standard_normal((n, dim)), labels


def brute_force_knn(train, labels, test, k, classes, temperature):
    scores = np.zeros((len(test), classes))
    for i, t in enumerate(test):
        similarity = [float(t @ x / np.linalg.norm(t) / np.linalg.norm(x)) for x in train]
        for j in sorted(range(len(train)), key=lambda j: -similarity[j])[:k]:
            scores[i, labels[j]] += np.exp(similarity[j] / temperature)
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 10, 40])
def test_knn_equals_brute_force(k):
    train, labels = blobs(40)
    test, _ = blobs(15, seed=1)
    ours = knn.knn_scores(train, labels, test, k, 3)
    assert np.allclose(ours, brute_force_knn(train, labels, test, k, 3, 0.07), atol=1e-5)


def test_zero_vectors_do_no_harm():
    train, labels = blobs(20)
    train[0] = 0
    assert np.isfinite(knn.knn_scores(train, labels, np.zeros((2, 16)), 5, 3)).all()


def test_shuffled_labels_give_chance():
    accuracy = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        train, labels = blobs(120, seed=seed)
        test, truth = blobs(60, seed=seed + 1000)
        scores = knn.knn_scores(train, rng.permutation(labels), test, 20, 3)
        accuracy.append((scores.argmax(axis=1) == truth).mean())
    assert abs(np.mean(accuracy) - 1 / 3) < 0.04


def test_logistic_equals_scikit_learn_at_the_chosen_strength():
    train, labels = blobs(300, spread=2)
    test, _ = blobs(50, spread=2, seed=1)
    scores, strength = probes.logistic_scores(train, labels, [None] * 300, test, 3)
    mean, std = train.mean(axis=0), train.std(axis=0)
    naive = LogisticRegression(C=strength, max_iter=2000).fit((train - mean) / std, labels)
    assert np.allclose(scores, naive.predict_proba((test - mean) / std), atol=2e-2)


def test_row_space_changes_no_solution():
    train, labels = blobs(60, dim=400, spread=2)
    test, _ = blobs(30, dim=400, spread=2, seed=1)
    small, small_test = probes.to_row_space(train, test)
    assert small.shape[1] <= 60
    direct = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(train, labels).predict_proba(test)
    turned = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(small, labels).predict_proba(small_test)
    assert np.allclose(direct, turned, atol=5e-3)  # the basis is kept in float32


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_collapsed_features_know_nothing_and_break_nothing(value):
    train, labels = np.full((20, 192), value), np.arange(20) % 2
    scores, _ = probes.logistic_scores(train, labels, [None] * 20, train[:3], 2)
    np.testing.assert_allclose(scores, 0.5, atol=1e-3)


@pytest.mark.filterwarnings("error")
def test_a_test_part_of_one_class_has_no_auroc(tmp_path):
    from saccade.base import run_folder
    from saccade.reporting.evaluation_results import read_evaluation
    from saccade.reporting.section_evaluation import evaluation_blocks, every_number, low_label_table

    train, labels = blobs(30)
    test = train[labels == 1]
    learned, asked = table(train, labels), table(test, [1] * len(test), prefix="t")
    models = {"one": (learned, asked), "other": (learned, asked)}
    found = protocol.evaluate(models, protocol.ProtocolConfig(fractions=(1.0,), bootstrap=50))
    figures = {row["metric"]: row for row in found.rows if row["model"] == "one" and row["probe"] == "logistic"}
    assert all(figures["auroc"][key] is None for key in ("mean", "low", "high"))
    assert figures["accuracy"]["mean"] > 0.8 and figures["balanced_accuracy"]["high"] is not None
    gaps = [gap for gap in found.differences if gap["metric"] == "auroc"]
    assert gaps and all(gap["difference"] is gap["low"] is None and gap["clear"] is False for gap in gaps)
    assert "All test images are of class 1: there is no AUROC" in found.protocol["text"]
    run_folder.write_json(tmp_path / "evaluation.json", found.to_dict())
    stored = run_folder.read_json(tmp_path / "evaluation.json")
    assert stored["rows"] == found.rows
    shown = read_evaluation(stored)
    assert shown is not None
    page = f"{low_label_table(shown)}{every_number(shown)}{evaluation_blocks(shown)}"
    assert "no interval" in str(every_number(shown)) and "–" in str(every_number(shown))
    written = [page, tables.to_text(found), tables.to_markdown(found), tables.to_csv(found)]
    assert not any("nan" in text.lower().replace("nanosec", "") or "None" in text for text in written)


def test_a_collapsed_model_is_measured_like_any_other(tmp_path, monkeypatch):
    import torch

    import saccade
    from saccade.tasks import evaluate

    load = evaluate.load_model

    def collapsed(*args, **options):
        loaded = load(*args, **options)
        with torch.no_grad():
            for weight in loaded.backbone.parameters():
                weight.zero_()
        return loaded

    monkeypatch.setattr(evaluate, "load_model", collapsed)
    data = "synthetic:tissue?n=24&size=32&groups=12"
    found = saccade.evaluate(["random:vit_micro_patch8"], data, out=tmp_path / "e")
    rows = [r for r in found.rows if r["model"] == "random:vit_micro_patch8" and r["metric"] == "auroc"]
    assert len(rows) > 2 and all(row["mean"] == pytest.approx(0.5) for row in rows)


def test_logistic_with_one_image_a_class_says_so():
    train, labels = blobs(3)
    scores, strength = probes.logistic_scores(train, labels, [None] * 3, train, 3)
    assert strength is None and scores.shape == (3, 3)


@pytest.mark.parametrize("rare", [2, 4, 10])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_rare_class_takes_part_in_the_choice_of_strength(rare, grouped):
    rng = np.random.default_rng(rare)
    labels = rng.permutation(np.repeat([0, 1, 2], [2500, 2500 - rare, rare]))
    features = rng.standard_normal((5000, 4)).astype(np.float32)
    # Two images a group where groups are known, so that the rare class has half as many groups as images.
    groups: list[str | None] = [None] * 5000
    if grouped:
        for c in range(3):
            groups = [f"{c}-{np.sum(labels[:i] == c) // 2}" if y == c else groups[i] for i, y in enumerate(labels)]
    chosen = probes.subsample(labels, groups, 1000)
    assert len(set(chosen.tolist())) == len(chosen) and abs(len(chosen) - 1000) <= 5
    assert [int((labels[chosen] == c).sum()) for c in (0, 1)] == pytest.approx([500, 500], abs=3)
    units = rare // 2 if grouped else rare
    inside = {groups[i] if grouped else i for i in chosen[labels[chosen] == 2].tolist()}
    assert len(inside) == min(units, 3)
    strength = probes.select_C(features, labels, groups)
    assert (strength is None) == (units < 2)


def test_folds_keep_groups_apart():
    labels = np.repeat([0, 1], 30)
    groups = [f"g{i // 5}" for i in range(60)]
    for a, b in probes.cv_folds(labels, groups):
        assert not {groups[i] for i in a} & {groups[i] for i in b}


def test_metrics_equal_scikit_learn():
    scores = RNG.random((80, 3)).round(1)
    labels = np.arange(80) % 3
    one = np.ones((1, 80))
    assert metrics.accuracy(scores, labels, one)[0] == pytest.approx((scores.argmax(1) == labels).mean())
    assert metrics.balanced_accuracy(scores, labels, one)[0] == pytest.approx(
        balanced_accuracy_score(labels, scores.argmax(1))
    )
    expected = np.mean([roc_auc_score(labels == c, scores[:, c]) for c in range(3)])
    assert metrics.auroc(scores, labels, one)[0] == pytest.approx(expected)


def test_weights_count_as_repetition():
    scores, labels = RNG.random((30, 2)), np.arange(30) % 2
    counts = RNG.integers(0, 4, 30)
    repeated = np.repeat(np.arange(30), counts)
    for measure in metrics.METRICS.values():
        weighted = measure(scores, labels, counts[None])[0]
        plain = measure(scores[repeated], labels[repeated], np.ones((1, len(repeated))))[0]
        assert weighted == pytest.approx(plain)


def test_bootstrap_draws_whole_groups():
    groups = ["a"] * 5 + ["b"] * 3 + ["c"] * 7
    weights = metrics.resampling_weights(groups, 50, seed=0)
    for start, end in ((0, 5), (5, 8), (8, 15)):
        assert (weights[:, start:end] == weights[:, start : start + 1]).all()
    assert (weights[:, [0, 5, 8]].sum(axis=1) == 3).all()


def test_bootstrap_covers_the_truth():
    hits = 0
    for seed in range(200):
        correct = np.random.default_rng(seed).random(150) < 0.7
        scores = np.stack([correct, ~correct], axis=1).astype(float)
        weights = metrics.resampling_weights([None] * 150, 400, seed=seed)
        resampled = metrics.accuracy(scores, np.zeros(150, int), weights)
        low, high = metrics.interval(correct.mean(), resampled, 150)
        hits += low <= 0.7 <= high
    assert 0.88 < hits / 200 < 0.99


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=6, max_size=30),
    classes=st.integers(2, 3),
    fraction=st.sampled_from([0.5, 0.1, 0.01]),
    repeat=st.integers(0, 3),
)
def test_draws_keep_pure_groups_whole_and_every_class(sizes, classes, fraction, repeat):
    labels = np.concatenate([np.full(size, i % classes) for i, size in enumerate(sizes)])
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    chosen, whole = protocol.draw_fraction(labels, groups, fraction, seed=0, repeat=repeat)
    assert whole and len(np.unique(chosen)) == len(chosen)
    assert set(labels[chosen]) == set(range(classes))
    taken = {groups[i] for i in chosen}
    assert sum(groups[i] in taken for i in range(len(groups))) == len(chosen)
    again, _ = protocol.draw_fraction(labels, groups, fraction, seed=0, repeat=repeat)
    assert np.array_equal(chosen, again)


def test_mixed_groups_fall_back_to_images_and_say_so():
    labels = np.tile(np.arange(4), 100)
    groups = [f"g{i // 100}" for i in range(400)]
    chosen, whole = protocol.draw_fraction(labels, groups, 0.02, seed=0, repeat=0)
    assert not whole and len(chosen) == 8 and set(labels[chosen]) == {0, 1, 2, 3}


def report(spread_a=1.0, spread_b=3.0, **config):
    labels = np.arange(240) % 3
    groups = [f"g{i % 60}-{i % 3}" for i in range(240)]

    def pair(spread, seed):
        x, _ = blobs(240, spread=spread, seed=seed)
        z, _ = blobs(240, spread=spread, seed=seed + 1)
        return table(x, labels, groups, "a"), table(z, labels, [f"t{g}" for g in groups], "b")

    chosen = protocol.ProtocolConfig(bootstrap=200, repeats=3, **config)
    return protocol.evaluate({"good": pair(spread_a, 0), "bad": pair(spread_b, 10)}, chosen)


def test_report_rows_and_differences():
    found = report()
    keys = {"model", "probe", "fraction", "metric", "mean", "low", "high", "n_train", "repeats"}
    assert all(keys <= set(row) for row in found.rows)
    assert all(row["low"] <= row["mean"] + 0.02 and row["mean"] - 0.02 <= row["high"] for row in found.rows)
    gap = next(d for d in found.differences if d["probe"] == "logistic" and d["fraction"] == 1.0)
    assert gap["clear"] and gap["low"] > 0
    capped = {row["k"] for row in found.rows if row["probe"] == "knn" and row["fraction"] == 0.01}
    assert capped == {10, 12}  # one group of four images a class
    again = json.dumps(found.to_dict())
    assert json.dumps(protocol.EvalReport(**json.loads(again)).to_dict()) == again
    assert "paired" in found.protocol["text"] and "k = 20" in found.protocol["text"]


def test_a_model_against_itself_is_never_clear():
    labels = np.arange(120) % 3
    x, _ = blobs(120, spread=2)
    same = (table(x, labels), table(x[::-1], labels[::-1], prefix="t"))
    found = protocol.evaluate({"a": same, "b": same}, protocol.ProtocolConfig(bootstrap=100, repeats=2))
    assert all(d["difference"] == 0 and not d["clear"] for d in found.differences)


def test_missing_class_is_an_error():
    train, test = table(*blobs(30)), table(*blobs(40, classes=4))
    with pytest.raises(EvaluationError, match="lacks a class"):
        protocol.evaluate({"a": (train, test)}, protocol.ProtocolConfig())


def test_tables_in_every_form():
    found = report().with_context(data="six", split="the split given with the data", overlap=True, grey=False)
    text = tables.to_text(found)
    assert "Δ (good − bad)" in text and "mean Δ" in text and "100 % (n=240)" in text
    assert "ahead of bad" in text and "* part of the test part was seen" in text
    assert tables.to_markdown(found).count("|---") == 0 and "| --- |" in tables.to_markdown(found)
    lines = tables.to_csv(found).splitlines()
    assert len(lines) == len(found.rows) + 1 and lines[1].endswith("True")


def test_one_group_has_no_interval():
    found = report()
    several = tables.to_text(found)
    one = tables.to_text(dataclasses.replace(found, protocol=found.protocol | {"units_test": 1}))
    table_of_several, table_of_one = several.split("\n\n")[0], one.split("\n\n")[0]
    assert "[" in table_of_several and "[" not in table_of_one and "100 % (n=240)" in table_of_one


def test_guard_refuses_and_marks():
    records = [Record(f"x{i}", "a", f"p{i // 2}", None) for i in range(10)]
    hashes = [f"hash-{i}" for i in range(10)]
    words = {"where": "seen", "hint": "look"}
    clean = contamination.check_overlap([{"sha256": "other", "group": "q"}], records, hashes, range(6, 10))
    assert not clean and contamination.refuse_overlap(clean, allow=False, **words) is False
    seen = {
        "the image itself": {"sha256": "hash-7", "group": None},
        "another image of its group, known by name": {"sha256": "new", "group": "p4"},
        "another image of its group, known by content": {"sha256": "hash-8", "group": None},
    }
    for item in seen.values():
        overlap = contamination.check_overlap([item], records, hashes, [7, 9])
        with pytest.raises(ContaminationError, match="--allow-overlap"):
            contamination.refuse_overlap(overlap, allow=False, **words)
        assert contamination.refuse_overlap(overlap, allow=True, **words) is True


def test_training_and_test_part_share_nothing():
    records = [Record(f"x{i}", "a", f"p{i}", None) for i in range(6)]
    assert not contamination.check_parts(records, list("abcdef"), [0, 1, 2], [3, 4, 5])
    assert contamination.check_parts(records, list("abcdec"), [0, 1, 2], [3, 4, 5]).ids == ["x5"]
    shared = [*records[:5], Record("x5", "a", "p0", None)]
    assert contamination.check_parts(shared, list("abcdef"), [0, 1, 2], [3, 4, 5]).groups == ["p0"]


def test_ancestors_count_as_seen():
    record = {"files": [{"sha256": "a", "group": None}], "ancestors": [{"sha256": "b", "group": "p"}]}
    assert [item["sha256"] for item in contamination.seen_in_pretraining(record)] == ["a", "b"]
    assert contamination.seen_in_pretraining(None) == []


def test_histograms():
    image = np.zeros((2, 3, 4, 4), np.float32)
    image[1] = 1.0
    found = baselines.histogram_features(image)
    assert found.shape == (2, 512) and found[0, 0] == 1 and found[1, 511] == 1
    assert baselines.histogram_features(image[:, :1]).shape == (2, 64)
    assert baselines.histogram_features(np.zeros((1, 5, 2, 2))).shape == (1, 160)
    assert baselines.pixel_features(image).shape == (2, 48)


def test_store_round_trip(tmp_path):
    first = table(RNG.standard_normal((50, 8)), range(50), [None, "g"] * 25)
    save_table(tmp_path / "deep" / "f.parquet", first)
    again = load_table(tmp_path / "deep" / "f.parquet")
    assert np.array_equal(first.features, again.features)
    assert (first.ids, first.labels, first.groups, first.hashes) == (
        again.ids,
        again.labels,
        again.groups,
        again.hashes,
    )
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(DataError, match="not a feature table"):
        load_table(tmp_path / "bad.parquet")


@pytest.mark.parametrize(("rows", "width"), [(1, 3), (37, 5), (1000, 8), (2051, 4)])
@pytest.mark.parametrize("k", [1, 20, 300])
def test_nearest_is_exact(monkeypatch, rows, width, k):
    """Against a full sort, whatever the blocks: 64 or 1,024 rows, 10 or 512 queries at a time."""
    features = RNG.standard_normal((rows, width)).astype(np.float32)
    queries = np.concatenate([features[:30], RNG.standard_normal((170, width)).astype(np.float32)])
    full = store.l2_normalize(queries) @ store.l2_normalize(features).T
    expected = -np.sort(-full, axis=1)[:, :k]
    for row_block, query_block in ((64, 10), (1024, 512)):
        monkeypatch.setattr(store, "ROWS", row_block)
        monkeypatch.setattr(store, "QUERIES", query_block)
        scores, indices = store.nearest(features, queries, k)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        np.testing.assert_allclose(np.take_along_axis(full, indices, 1), expected, atol=1e-5)
        assert all(len(set(row)) == min(k, rows) for row in indices.tolist())


def test_few_groups_claim_nothing():
    """Two patients in the test part: whatever the intervals say, no lead is called clear."""
    train, test = table(*blobs(20)), table(*blobs(20), groups=[f"p{i % 2}" for i in range(20)])
    noise = dataclasses.replace(train, features=np.random.default_rng(1).normal(size=train.features.shape))
    config = protocol.ProtocolConfig(fractions=(1.0,), repeats=1, bootstrap=50)
    few = protocol.evaluate({"good": (train, test), "bad": (noise, test)}, config)
    assert not any(d["clear"] for d in few.differences) and "the intervals mean nothing" in few.protocol["text"]
    said = tables.to_text(few)
    assert "]?" not in said and said.count("] ?") == 6 and "? The test part is 2 groups: an interval over" in said
    assert "2 groups: an interval over so few means nothing" in tables.to_markdown(few) and few.protocol["few_units"]
    many = protocol.evaluate({"good": (train, train), "bad": (noise, train)}, config)
    assert any(d["clear"] for d in many.differences)
    assert "?" not in tables.to_text(many) and not many.protocol["few_units"]


@pytest.mark.parametrize("bad", [{"fractions": (100.0, 10.0)}, {"fractions": (1.0, 1.0)}, {"repeats": 0}])
def test_protocols_that_cannot_be_meant(bad):
    with pytest.raises(UsageError, match="fraction"):
        protocol.ProtocolConfig(**bad)
