"""Each rule of the doctor: when it speaks, when it must not, and that its change is one that can be made."""

import math

import pytest

from saccade.methods.diagnosis import Settings
from saccade.methods.registry import card_of
from saccade.train.diagnose import HOLD, examine, settings_of

FLAT = math.log(256)
DINO = Settings(
    "dino", 64, 5000, 1000, 1e-3, 0.1, 256, 0.1, teacher_temp=0.04, momentum=0.99, center_momentum=0.9, koleo=0.1
)
HEALTHY = {
    "loss": 1.4, "teacher_entropy": 0.4, "kl": 1.0, "marginal_entropy": 2.4, "grad_norm": 1.5, "koleo": 1.0,
    "feature_std": 0.7, "wait": 0.1,
}  # fmt: skip


def lines(*parts: tuple[int, dict[str, float]]) -> list[dict[str, float]]:
    """Ten steps a line: for each part so many steps of a healthy run with some figures changed."""
    found = []
    for count, changed in parts:
        found += [{"step": 10 * (len(found) + i), **HEALTHY, **changed} for i in range(count // 10)]
    return found


SICK = {
    "uniform collapse": {"teacher_entropy": FLAT - 0.01, "kl": 0.001, "loss": FLAT},
    "one-prototype collapse": {"marginal_entropy": 0.01, "teacher_entropy": 0.001, "kl": 0.001},
    "all images have the same vector": {"feature_std": 0.001},
    "no learning": {"grad_norm": 1e-8},
    "diverged": {"grad_norm": 400.0},
    "KoLeo infinite": {"koleo": 9.2},
    "the data loader starves the device": {"wait": 0.8},
}


def around(loss: float) -> list[dict[str, float]]:
    """800 steps at one loss."""
    healthy = {"grad_norm": 1.0, "feature_std": 0.7}
    return [{"step": 10 * i, "loss": loss + 0.002 * (-1) ** i, **healthy} for i in range(80)]


def names(found) -> list[str]:
    return [one.name for one in found]


@pytest.mark.parametrize("name", SICK)
def test_named_within_200_steps_of_onset_and_not_before(name):
    sick = lines((400, {}), (200, SICK[name]))
    first = next(n for n in range(1, len(sick) + 1) if name in names(examine(sick[:n], DINO)))
    found = next(one for one in examine(sick[:first], DINO) if one.name == name)
    assert 400 <= sick[first - 1]["step"] <= 600
    assert found.since == 400
    assert examine(sick[:41], DINO) == []
    assert name in found.text() and found.evidence and found.cause


@pytest.mark.parametrize(("mean_answer", "told"), [(5.1, ["uniform collapse"]), (5.4, [])])
def test_answers_that_say_nothing_of_their_image_are_a_collapse_below_ln_k_too(mean_answer, told):
    sick = {"teacher_entropy": 5.09, "marginal_entropy": mean_answer, "kl": 0.001, "loss": 5.1}
    assert names(examine(lines((400, {}), (200, sick)), DINO)) == told


@pytest.mark.parametrize("name", SICK)
def test_a_single_bad_line_is_no_illness(name):
    assert examine(lines((400, {}), (10, SICK[name]), (40, {})), DINO) == []
    assert examine(lines((400, {}), (HOLD // 2, SICK[name])), DINO) == []


@pytest.mark.parametrize("name", SICK)
def test_nothing_is_said_in_the_warm_up(name):
    assert examine(lines((100, SICK[name])), DINO) == []


def test_healthy_runs_are_left_alone():
    sure = {"teacher_entropy": 0.1, "kl": 0.5, "marginal_entropy": 2.4, "loss": 0.6}
    assert examine(lines((1000, {})), DINO) == [] and examine(lines((1000, sure)), DINO) == []
    # A loss that rises while the teacher becomes less sharp is how DINO begins.
    rising = [{**line, "loss": 1 + i / 100} for i, line in enumerate(lines((1000, {})))]
    assert examine(rising, DINO) == []


def test_ranks():
    def ranks(*values):
        return [{**line, "rank": values[i // 10]} if i % 10 == 0 else line for i, line in enumerate(lines((300, {})))]

    assert names(examine(ranks(30, 1.2, 1.1)[:26], DINO)) == ["dimensional collapse"]
    assert examine(ranks(30, 12, 10)[:26], DINO) == []
    # A random network may begin with a low rank; it is not what has collapsed.
    assert examine(ranks(2.1, 2.0, 1.9)[:26], DINO) == []


def test_a_teacher_that_stays_unsure_is_told_after_half_of_the_run():
    flat = {"teacher_entropy": 0.94 * FLAT, "kl": 0.3}
    assert examine(lines((500, flat)), DINO) == []
    assert names(examine(lines((800, flat)), DINO)) == ["teacher temperature too high"]


@pytest.mark.parametrize(
    ("changed", "cause", "sharper"),
    [
        ({"teacher_temp": 0.1}, "no sharpening", 0.04),
        ({"out_dim": 4096}, "prototypes are many for a batch", 0.02),
        ({}, "too high for a batch of 64", 0.02),
    ],
)
def test_causes_come_from_the_settings(changed, cause, sharper):
    import dataclasses

    settings = dataclasses.replace(DINO, **changed)
    flat = math.log(settings.out_dim)
    sick = lines((400, {}), (200, {"teacher_entropy": flat - 0.01, "kl": 0.001}))
    found = examine(sick, settings)[0]
    assert cause in found.cause and found.change == {"dino.teacher_temp": pytest.approx(sharper)}


def test_other_methods_have_no_prototypes():
    contrast = Settings("moco_v3", 64, 5000, 1000, 1e-3)
    few = [
        {k: v for k, v in line.items() if k in ("step", "loss", "grad_norm", "feature_std")}
        for line in lines((600, {}))
    ]
    assert examine(few, contrast) == []


@pytest.mark.parametrize(
    ("method", "loss", "temperature"),
    [("same_image", math.log(2), None), ("relative_position", math.log(8), None), ("moco_v3", 0.8 * math.log(64), 0.2)],
)
def test_a_loss_that_is_that_of_guessing_is_told_after_half_of_the_run(method, loss, temperature):
    config = card_of(method).config_from({"temperature": temperature} if temperature else {})
    settings = Settings(method, 64, 5000, 1000, 1e-3, chance=card_of(method).chance_loss(config, 64))
    guessing = [
        {"step": 10 * i, "loss": loss + 0.002 * (-1) ** i, "grad_norm": 1.0, "feature_std": 0.7} for i in range(80)
    ]
    assert examine(guessing[:50], settings) == []
    assert names(examine(guessing, settings)) == ["no better than guessing"]
    assert examine([line | {"loss": 0.9 * loss} for line in guessing], settings) == []


def test_what_a_micro_batch_guesses_is_told_by_its_own_size():
    """With gradients of several micro-batches, images are compared within each."""
    values = {"train": {"method": "moco_v3", "batch": 16, "accumulate": 4, "steps": 1000},
              "optim": {"lr": 1e-3, "warmup_fraction": 0.1}, "moco_v3": {"temperature": 0.2}}  # fmt: skip
    loss = 0.8 * math.log(16)
    guessing = [
        {"step": 10 * i, "loss": loss + 0.002 * (-1) ** i, "grad_norm": 1.0, "feature_std": 0.7} for i in range(80)
    ]
    assert names(examine(guessing, settings_of(values, 5000))) == ["no better than guessing"]


def test_lejepa_of_one_point_is_told_by_its_test_of_normality():
    settings = Settings("lejepa", 64, 5000, 1000, 1e-3)
    point = 64 * 0.40897
    figures = {"loss": 1.0, "grad_norm": 1.0, "feature_std": 0.7, "invariance": 1e-4}
    sick = [{"step": 10 * i, **figures, "sigreg": point if i > 40 else 3.0} for i in range(60)]
    assert examine(sick[:41], settings) == []
    assert names(examine(sick, settings)) == ["all images have the same vector"]


def test_features_that_fall_below_the_start_are_told_in_runs_from_weights_only():
    started = Settings("dino", 64, 5000, 1000, 1e-3, pretrained=True)
    probes = [{"step": 100 * i, "rank": 20.0, "knn": value} for i, value in enumerate((0.8, 0.81, 0.7, 0.6))]
    assert examine(probes[:2], started) == []
    found = examine(probes, started)[0]
    assert found.name == "features worse than at the start" and found.since == 200 and "80.0 %" in found.evidence
    assert found.change == {"optim.lr": pytest.approx(1e-3 / 3)}
    assert examine(probes, Settings("dino", 64, 5000, 1000, 1e-3)) == []


@pytest.mark.parametrize("key", ["feature_std", "spread"])
def test_equal_vectors_are_diagnosed_in_runs_of_version_0_1_too(key):
    lines = [{"step": 10 * i, "loss": 1.0, "grad_norm": 1.0, key: 0.001} for i in range(60)]
    assert names(examine(lines, Settings("mae", 64, 5000, 600, 1e-3))) == ["all images have the same vector"]
