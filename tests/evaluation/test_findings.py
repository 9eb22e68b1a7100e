"""What a study claims: right where the truth is built in, silent where there is nothing, honest about chance."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_study
from saccade.errors import EvaluationError, UsageError
from saccade.evaluation.backbone_roles import couples, default_columns
from saccade.evaluation.findings import rounded
from saccade.evaluation.learning_curves import Answers, Grid, crossing, pairs, summarise
from saccade.evaluation.resampling import Chance, Estimate

M, GROUPS = 400, 40
TRUTH = np.arange(M) % 2
NAMES = [f"p{i % GROUPS}" for i in range(M)]
CLAIMS = ("leads", "passes", "helps", "harms", "shrinks", "grows", "falls", "takes away", "stays ahead", "is ahead of")


def right(which: np.ndarray) -> np.ndarray:
    """[M 2] scores that are right exactly where ``which`` says."""
    return np.eye(2, dtype=np.float32)[np.where(which, TRUTH, 1 - TRUTH)]


def upto(share: float) -> np.ndarray:
    """The first of every ten images of a group right, in the same order for everybody."""
    return (np.arange(M) // GROUPS % 10) < round(10 * share)


def answers(name, which, size=100, seeds=3, series="supervised") -> list[Answers]:
    return [Answers(name, series, size, seed, right(which), {}) for seed in range(seeds)]


def summary(found, **options):
    return summarise(found, TRUTH, NAMES, **({"resamples": 500} | options))


def only(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


# --- what is true is found, what is not is not claimed -------------------------------------------


def test_a_difference_that_is_there_is_clear():
    found = summary(answers("a", upto(0.8)) + answers("b", upto(0.6)))
    row = only(found["differences"], first="a", second="b")
    assert row["difference"] == pytest.approx(0.2) and row["clear"] and row["low"] > 0.1
    assert only(found["points"], backbone="a")["mean"] == pytest.approx(0.8)
    text = found["conclusions"][0]["text"]
    assert text.startswith(
        "With 100 labelled images (labels only, no augmentation) a leads: 80.0 % against 60.0 % for b"
    )
    assert "difference 20.0 points (95 % interval 20.0 to 20.0)" in text
    json.dumps(found, allow_nan=False)


def test_equal_answers_are_never_different():
    noise = np.random.default_rng(0).random(M) < 0.7
    found = summary(answers("a", noise) + answers("b", noise))
    row = only(found["differences"], first="a")
    assert (row["difference"], row["low"], row["high"], row["clear"]) == (0, 0, 0, False)
    assert "no backbone is clearly ahead" in found["conclusions"][0]["text"]
    point = only(found["points"], backbone="a")
    assert point["low"] < noise.mean() == pytest.approx(point["mean"]) and point["high"] > noise.mean()


def test_few_groups_or_one_seed_show_nothing():
    both = answers("a", upto(0.9)) + answers("b", upto(0.3))
    few = summarise(both, TRUTH, [f"p{i % 5}" for i in range(M)], resamples=200)
    once = summary([a for a in both if a.seed == 0])
    for found, said in ((few, "only 5 test groups"), (once, "done once")):
        assert not any(row["clear"] for row in found["differences"])
        assert any(said in words for words in found["protocol"]["limits"])
        assert "no backbone is clearly ahead" in found["conclusions"][0]["text"]
        assert "too few seeds or test groups" in found["conclusions"][0]["text"]


def test_seeds_that_disagree_widen_the_interval():
    steady = answers("a", upto(0.8)) + answers("b", upto(0.6))
    shaken = answers("a", upto(0.8)) + [
        Answers("b", "supervised", 100, seed, right(upto(share)), {}) for seed, share in enumerate((0.4, 0.6, 0.8))
    ]
    narrow, wide = (only(summary(found)["differences"], first="a") for found in (steady, shaken))
    assert narrow["clear"] and not wide["clear"]
    # Three seeds, two backbones: Student's t with 2 degrees of freedom, 4.30 times 0.2 / sqrt(3).
    assert wide["high"] - wide["low"] == pytest.approx(2 * 4.30 * 0.2 / np.sqrt(3), rel=0.25)


def test_the_same_seeds_are_compared():
    """A seed that only one backbone has says nothing of the difference."""
    a = answers("a", upto(0.7), seeds=2) + [Answers("a", "supervised", 100, 9, right(upto(0.1)), {})]
    row = only(summary(a + answers("b", upto(0.6), seeds=2))["differences"], first="a")
    assert row["difference"] == pytest.approx(0.1) and row["seeds"] == 2


def test_more_comparisons_ask_for_more():
    """The same two backbones: clear when alone, not among fifteen pairs, though the 95 % interval is the same."""
    order = np.random.default_rng(0).permutation(M)
    b, a = np.zeros(M, bool), np.zeros(M, bool)
    b[order[:240]], a[order[14:270]] = True, True  # 30 more right, 14 less: 2.4 standard errors
    two = answers("a", a) + answers("b", b)
    alone = only(summary(two, resamples=4000)["differences"], first="a", second="b")
    copies = [answer for i in range(4) for answer in answers(f"c{i}", b)]
    among = only(summary(two + copies, resamples=4000)["differences"], first="a", second="b")
    assert (alone["comparisons"], among["comparisons"]) == (1, 15)
    assert (alone["low"], alone["high"]) == (among["low"], among["high"]) and alone["low"] > 0
    assert alone["clear"] and not among["clear"] and among["strict_low"] < 0
    text = summary(two + copies, resamples=4000)["conclusions"][0]["text"]
    assert "may be chance among 15 comparisons" in text


def estimate(mean: float, resampled: np.ndarray) -> Estimate:
    return Estimate(mean, resampled, 100, (), resampled, 3, 10, (-1, 1))


def test_clear_is_what_the_strict_interval_says():
    rng = np.random.default_rng(0)
    for mean in (0.03, 0.06, 0.09):
        spread = mean + rng.normal(0, 0.02, 2000)
        row = estimate(mean, spread).row()
        assert row["clear"] == (np.percentile(spread, 0.25) > 0)
    assert [estimate(m, m + rng.normal(0, 0.02, 2000)).row()["clear"] for m in (0.03, 0.09)] == [
        False,
        True,
    ]


# --- chance -------------------------------------------------------------------------------------


def chance_study(rng: np.random.Generator, backbones: int, seeds: int, groups: int) -> tuple[list[Answers], list[str]]:
    """Backbones that are equally good in truth: groups, seeds and images make them differ."""
    which = np.arange(M) % groups
    image = rng.normal(0, 1, M)
    found = []
    for b in range(backbones):
        taste = rng.normal(0, 0.2, groups)[which]
        for seed in range(seeds):
            z = 0.6 + image + taste + rng.normal(0, 0.15) + rng.normal(0, 0.8, M)
            found.append(Answers(f"b{b}", "supervised", 100, seed, right(z > 0), {}))
    return found, [f"p{i}" for i in which]


def values_of(grid: Grid) -> dict:
    return {name: grid.get(name, "supervised", 100) for name in grid.backbones}


def test_intervals_cover_and_false_alarms_are_rare():
    """The truth is 0. A bootstrap of three seeds covers 90 % here and raises a false alarm in every sixth study."""
    covered, pairs_seen, alarms, studies = 0, 0, 0, 120
    for number in range(studies):
        found, groups = chance_study(np.random.default_rng(number), 4, 3, 40)
        chance = Chance(groups, 400, number)
        judged = pairs(values_of(Grid(found, TRUTH, chance, "accuracy")), chance, 100)
        rows = [estimate.row() for estimate in judged.values()]
        covered += sum(row["low"] <= 0 <= row["high"] for row in rows)
        pairs_seen += len(rows)
        alarms += any(row["clear"] for row in rows)
    assert covered / pairs_seen > 0.93
    assert alarms / studies < 0.08


def test_few_groups_are_not_taken_for_many():
    """With 8 groups a bootstrap's deviations must be widened by about sqrt(8/7) and from the normal to t with 7."""
    groups = [f"p{i % 8}" for i in range(M)]
    widening = Chance(groups, 20_000, 0).widening
    assert np.percentile(np.random.default_rng(0).normal(size=20_000) * widening, 97.5) == pytest.approx(
        2.365 * np.sqrt(8 / 7), rel=0.05
    )
    assert abs(np.median(Chance([None] * M, 1000, 0).widening) - 1) < 0.01


def test_the_same_study_gives_the_same_numbers():
    first, second = (fake_study.small_summary(seed=4) for _ in range(2))
    assert first == second


# --- crossings ----------------------------------------------------------------------------------


def test_a_crossing_is_where_the_curves_meet():
    one = np.array([[0.1, -0.1], [0.1, -0.3], [-0.1, 0.1], [0.1, 0.2]])
    assert crossing(one, [100, 10_000]) == pytest.approx([1000, 100 * 100**0.25, np.nan, np.nan], nan_ok=True)
    twice = np.array([[0.2, -0.1, 0.1, -0.1]])
    assert crossing(twice, [1, 10, 100, 1000])[0] == pytest.approx(10**2.5)  # the last one counts


def curves(rng: np.random.Generator, at: float, sizes=(100, 1000, 10_000)) -> list[Answers]:
    """a is level; b rises straight in log n and meets a at ``at``."""
    image, found = rng.random(M), []
    for size in sizes:
        for seed in range(3):
            better = 0.18 * np.log10(size / at) + rng.normal(0, 0.006)
            for name, share in (("resnet18", 0.6), ("vit_tiny_patch8", 0.6 + better)):
                own = 0.8 * image + 0.2 * rng.random(M)
                found.append(Answers(name, "supervised", size, seed, right(own < np.quantile(own, share)), {}))
    return found


def test_a_crossing_that_is_there_is_found_within_its_interval():
    inside = 0
    for number in range(20):
        found = summary(curves(np.random.default_rng(number), at=600), resamples=300)
        (row,) = found["crossings"]
        assert (row["verdict"], row["first"], row["second"]) == ("passes", "resnet18", "vit_tiny_patch8")
        assert row["share"] > 0.97 and 400 < row["n"] < 900
        inside += row["low"] <= 600 <= row["high"]
    assert inside >= 17
    text = only(found["conclusions"], about="crossing")["text"]
    assert text.startswith("vit_tiny_patch8 passes resnet18 at about ") and "behind with 100 images" in text


def test_a_crossing_outside_the_sizes_is_not_invented():
    found = summary(curves(np.random.default_rng(0), at=1e5))
    (row,) = found["crossings"]
    assert (row["verdict"], row["n"], row["first"]) == ("stays ahead", None, "resnet18")
    assert "no crossing" in only(found["conclusions"], about="crossing")["text"]
    (row,) = summary(curves(np.random.default_rng(1), at=105))["crossings"]
    assert row["verdict"] == "not shown" and row["n"] is None
    assert [rounded(n) for n in (7.2, 38.4, 312.0, 4480.0)] == ["7", "38", "310", "4,500"]


# --- effects, conditions, table -----------------------------------------------------------------


def shares(values: dict[tuple[str, str, int], float], turned: float = 0.0) -> list[Answers]:
    """backbone, series and size to the share that is right; changed images lose ``turned``."""
    found = []
    for (name, series, size), share in values.items():
        for seed in range(3):
            changed = {"turn 90": right(upto(share - turned))}
            found.append(Answers(name, series, size, seed, right(upto(share)), changed))
    return found


def test_effects_are_differences_of_means():
    values = {("a", "supervised", 100): 0.4, ("b", "supervised", 100): 0.5}
    values |= {("a", "augmented", 100): 0.7, ("b", "augmented", 100): 0.7}
    values |= {
        (name, series, 900): share for name in "ab" for series, share in (("supervised", 0.8), ("augmented", 0.8))
    }
    values |= {("a", "dino-finetuned", 100): 0.9}
    found = summary(shares(values))
    rows = found["augmentation"]["rows"]
    got = {(row["backbone"], row["size"]): round(row["difference"], 6) for row in rows}
    assert got == {("a", 100): 0.3, ("b", 100): 0.2, ("", 100): 0.25, ("a", 900): 0, ("b", 900): 0, ("", 900): 0}
    assert found["augmentation"]["change"]["difference"] == pytest.approx(0.25)
    assert found["augmentation"]["change"]["clear"]
    (row, _) = found["pretraining"]["dino-finetuned"]["rows"]  # against augmented: the same augmentation
    assert (row["backbone"], round(row["difference"], 6), row["before"]) == ("a", 0.2, "augmented")
    texts = " ".join(sentence["text"] for sentence in found["conclusions"])
    assert "augmentation helps every backbone, most a: +30.0 points" in texts
    assert "With 900 labelled images augmentation makes no clear difference to any backbone" in texts
    assert "what it gives shrinks by 25.0 points" in texts


def test_what_is_built_in_and_what_augmentation_takes_of_it():
    values = {("resnet18", "supervised", 100): 0.4, ("resnet18_c4", "supervised", 100): 0.7}
    values |= {("resnet18", "augmented", 100): 0.7, ("resnet18_c4", "augmented", 100): 0.7}
    found = summary(shares(values))
    (row,) = found["equivariance"]
    assert [round(row[key]["difference"], 6) for key in ("supervised", "augmented", "taken")] == [0.3, 0, 0.3]
    first, second = (s["text"] for s in found["conclusions"] if s["about"] == "equivariance")
    assert "without augmentation, built-in equivariance helps: resnet18_c4 against resnet18, +30.0 points" in first
    assert "no effect of built-in equivariance is clear" in second and "takes away 30.0 points" in second


def test_changed_images_are_compared_with_plain_ones():
    values = {("a", "supervised", 100): 0.5, ("a", "supervised", 900): 0.8, ("b", "supervised", 900): 0.8}
    found = summary(shares(values, turned=0.3))
    assert {(row["backbone"], row["size"]) for row in found["robustness"]} == {("a", 900), ("b", 900)}
    assert all(row["difference"] == pytest.approx(-0.3) and row["comparisons"] == 2 for row in found["robustness"])
    assert "accuracy falls for every backbone" in only(found["conclusions"], about="robustness")["text"]


def test_the_table_compares_a_cnn_with_a_vit():
    values = {("vit_tiny_patch8", "dino-knn", n): share for n, share in ((100, 0.3), (900, 0.8))}
    values |= {("resnet18", "dino-knn", n): share for n, share in ((100, 0.5), (900, 0.7))}
    table = summary(shares(values))["table"]
    assert (table["left"], table["right"]) == ("resnet18", "vit_tiny_patch8")
    (block,) = table["blocks"]
    got = [[round(row[key], 6) for key in ("size", "left", "right", "difference")] for row in block["rows"]]
    assert got == [[100, 0.5, 0.3, 0.2], [900, 0.7, 0.8, -0.1]]
    assert block["mean"]["difference"] == pytest.approx(0.05)
    other = summary(shares(values), columns=("vit_tiny_patch8", "resnet18"))["table"]["blocks"][0]
    assert [round(row["difference"], 6) for row in other["rows"]] == [-0.2, 0.1]


def test_names_are_understood():
    names = ["vit_tiny_patch8_conv", "vit_tiny_patch8", "resnet18_c4_w128", "resnet18_w32", "no such network"]
    assert default_columns(names) == ("resnet18_w32", "vit_tiny_patch8")
    assert default_columns(["resnet18", "no such network"]) is None
    assert couples(names) == [("resnet18_c4_w128", "resnet18_w32")]
    assert couples(["resnet10", "resnet18_c4"]) == []  # other layers


# --- sentences ----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.1]), st.integers(2, 4), st.integers(1, 3))
def test_no_sentence_claims_what_is_not_clear(seed, spread, backbones, seeds):
    rng = np.random.default_rng(seed)
    names = ("resnet18", "resnet18_c4", "vit_tiny_patch8", "swin_tiny_patch4_window7")[:backbones]
    found = []
    for name in names:
        for series in ("supervised", "augmented", "dino-logistic", "dino-finetuned"):
            for size in (50, 500):
                share = np.clip(0.6 + rng.normal(0, spread), 0.1, 0.9)
                for s in range(seeds):
                    own = rng.random((2, 120)) < np.clip(share + rng.normal(0, 0.02), 0, 1)
                    plain, changed = (np.eye(2)[np.where(w, TRUTH[:120], 1 - TRUTH[:120])] for w in own)
                    found.append(Answers(name, series, size, s, plain, {"turned": changed}))
    said = summarise(found, TRUTH[:120], NAMES[:120], resamples=100)["conclusions"]
    assert said
    for sentence in said:
        firm = [e for e in sentence["evidence"] if e["clear"]]
        assert all((e["low"] > 0 or e["high"] < 0) and e["seeds"] > 1 for e in firm)
        if any(word in sentence["text"] for word in CLAIMS) or "Clearly behind" in sentence["text"]:
            assert firm, sentence["text"]
        if "leads" in sentence["text"]:
            assert all(e["clear"] and e["difference"] > 0 for e in sentence["evidence"])
        assert sentence["rule"] and "None" not in sentence["text"] and "nan" not in sentence["text"]


def test_a_part_of_the_grid_is_enough():
    full, truth, groups = fake_study.make(("resnet18", "vit_tiny_patch8"), sizes=(100, 900), images=200, groups=20)
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 11, 23):
        part = [full[i] for i in rng.permutation(len(full))[:count]]
        found = summarise(part, truth, groups, resamples=100)
        json.dumps(found, allow_nan=False)
        assert len(found["points"]) == len({(a.backbone, a.series, a.size) for a in part})


@pytest.mark.parametrize("metric", ["balanced_accuracy", "auroc"])
def test_other_metrics(metric):
    found = summary(answers("a", upto(0.8)) + answers("b", upto(0.6)), metric=metric, resamples=100)
    assert only(found["differences"], first="a")["difference"] == pytest.approx(0.2)


def test_wrong_input_is_named():
    good = answers("a", upto(0.8))
    with pytest.raises(UsageError, match="did you mean 'accuracy'"):
        summary(good, metric="acuracy")
    with pytest.raises(EvaluationError, match="no training is finished"):
        summary([])
    with pytest.raises(EvaluationError, match="duplicate training run"):
        summary(good + good)
    with pytest.raises(EvaluationError, match="399 predictions of b for 400"):
        summary([*good, Answers("b", "supervised", 100, 0, right(upto(0.5))[:-1], {})])
    with pytest.raises(UsageError, match="unknown backbone 'z'"):
        summary(good, columns=("a", "z"))
    with pytest.raises(EvaluationError, match="399 groups, 400 classes"):
        summarise(good, TRUTH, NAMES[:-1])
