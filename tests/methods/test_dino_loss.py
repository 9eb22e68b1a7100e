"""The loss of DINO against lightly's and the paper's loop; Sinkhorn against a reference."""

import math
import threading

import pytest
import torch
from lightly.loss import DINOLoss

from saccade.errors import UsageError
from saccade.methods.dino import center_and_sharpen, dino_loss, sinkhorn


def logits(*shape: int, seed: int = 0, spread: float = 0.3) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).clamp(-1, 1)


# --- the loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("views", "teachers"), [(2, 2), (6, 2), (5, 1), (4, 3)])
def test_loss_and_gradient_equal_lightlys(views, teachers):
    student = logits(views, 7, 33).requires_grad_()
    teacher, center = logits(teachers, 7, 33, seed=1), logits(33, seed=2)
    reference = DINOLoss(output_dim=33, teacher_temp=0.05, student_temp=0.1)
    reference.center.copy_(center)
    expected = reference(list(teacher), list(student))
    (wanted,) = torch.autograd.grad(expected, student)
    found = dino_loss(student, center_and_sharpen(teacher, center, 0.05), 0.1)
    (gradient,) = torch.autograd.grad(found, student)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-7, rtol=1e-4)


def test_loss_equals_the_papers_loop():
    """Algorithm 1 of the paper, over views, without a view and itself."""
    student, probs = logits(5, 4, 9), torch.softmax(logits(2, 4, 9, seed=1), dim=-1)
    terms = [
        -(probs[g] * torch.log_softmax(student[v] / 0.1, dim=-1)).sum(dim=-1).mean()
        for g in range(2)
        for v in range(5)
        if g != v
    ]
    assert dino_loss(student, probs, 0.1).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-6)


def test_loss_is_float32_under_autocast():
    student, probs = logits(4, 8, 64), torch.softmax(logits(2, 8, 64, seed=1) / 0.04, dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = dino_loss(student, probs, 0.1)
    assert found.dtype == torch.float32
    assert found.item() == dino_loss(student, probs, 0.1).item()


def test_uniform_collapse_is_ln_k():
    """Section 5.3: a teacher that is flat, and a student that has learned so, cost ln K exactly."""
    for batch, prototypes in [(8, 4096), (16, 65536)]:
        flat = torch.full((2, batch, prototypes), 1 / prototypes)
        found = dino_loss(torch.zeros(4, batch, prototypes), flat, 0.1)
        assert found.item() == pytest.approx(math.log(prototypes), rel=1e-6)


def test_one_view_cannot_be_compared():
    with pytest.raises(UsageError, match="different views"):
        dino_loss(torch.zeros(1, 4, 8), torch.full((1, 4, 8), 1 / 8), 0.1)


# --- sinkhorn ----------------------------------------------------------------------------------


def alone(x: torch.Tensor) -> torch.Tensor:
    return x


def reference_sinkhorn(x: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """As in SwAV and DINOv2, float64."""
    q = torch.exp(x.double() / temperature).T
    q /= q.sum()
    prototypes, samples = q.shape
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= samples
    return (q * samples).T.float()


@pytest.mark.parametrize("temperature", [0.07, 0.04, 0.02])
@pytest.mark.parametrize("spread", [0.02, 0.05, 0.3, 0.6])
def test_sinkhorn_equals_the_reference_loop(temperature, spread):
    """Early cosines lie near 0: exp(-1 / 0.02) per entry must not be lost in float32."""
    x = logits(128, 256, spread=spread)
    torch.testing.assert_close(
        sinkhorn(x, temperature, alone), reference_sinkhorn(x, temperature, 3), atol=1e-5, rtol=1e-4
    )


def test_sinkhorn_of_answers_that_are_no_cosines():
    """With free lengths (norm_last_layer=False) an answer can be 6: exp(6 / 0.04) is beyond float32."""
    x = 6 + 0.3 * logits(128, 256)
    torch.testing.assert_close(sinkhorn(x, 0.04, alone), reference_sinkhorn(x, 0.04, 3), atol=1e-5, rtol=1e-3)


def test_sinkhorn_balances():
    """Rows are distributions at once; with more rounds every prototype is used alike."""
    x = logits(64, 16)
    three, many = sinkhorn(x, 0.07, alone), sinkhorn(x, 0.07, alone, iterations=100)
    torch.testing.assert_close(three.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(many.sum(dim=0), torch.full((16,), 4.0), atol=1e-3, rtol=0)
    plain = torch.softmax(x / 0.07, dim=1).sum(dim=0)
    assert (three.sum(dim=0) - 4).abs().max() < 0.5 * (plain - 4).abs().max()


def test_sinkhorn_over_processes_equals_one():
    """Two threads stand for two processes and add as an all-reduce does."""
    x, slots, found = logits(32, 12) + torch.linspace(0, 0.3, 32)[:, None], [None, None], [None, None]
    barrier = threading.Barrier(2, timeout=20)

    def run(rank: int) -> None:
        def add(value: torch.Tensor) -> torch.Tensor:
            slots[rank] = value
            barrier.wait()
            total = slots[0] + slots[1]
            barrier.wait()
            return total

        found[rank] = sinkhorn(x[16 * rank : 16 * rank + 16], 0.05, add)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat(found), sinkhorn(x, 0.05, alone), atol=1e-5, rtol=1e-4)
