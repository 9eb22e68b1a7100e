"""Terms of a loss that keep the vectors of a batch apart: KoLeo and the coding rate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saccade.runtime import gather_over_ranks, gather_with_gradient, rank


def koleo_loss(features: Float[Tensor, "B D"], all_features: Float[Tensor, "M D"], first: int) -> Float[Tensor, ""]:
    """KoLeo: minus the mean log distance to the nearest other vector, all scaled to length 1, float32.

    Sablayrolles et al. 2019, as in DINOv2. Identical vectors give a finite loss and no gradient between them.

    Parameters
    ----------
    all_features
        The vectors of all processes, no gradient, with ``features`` from row ``first`` on: a batch has the same loss
        on one process and on many.

    Examples
    --------
    >>> x = torch.eye(3)
    >>> round(float(koleo_loss(x, x, 0)), 4)  # -ln of the distance sqrt(2)
    -0.3466
    """
    x, others = F.normalize(features.float(), dim=1), F.normalize(all_features.float(), dim=1)
    if len(others) < 2:
        return x.sum() * 0.0
    with torch.no_grad():
        similarity = x @ others.T
        similarity[torch.arange(len(x)), first + torch.arange(len(x))] = -2.0
        nearest = similarity.argmax(dim=1)
    return -torch.log((x - others[nearest]).norm(dim=1) + 1e-4).mean()


def koleo_over_views(features: Float[Tensor, "G B D"]) -> Float[Tensor, ""]:
    """Mean KoLeo loss of the global views, over the batches of all processes."""
    first = rank() * features.shape[1]
    return torch.stack([koleo_loss(view, gather_over_ranks(view), first) for view in features]).mean()


CODING_ERROR = 0.05
"""Squared error to which vectors of length 1 are coded."""


def coding_rate(vectors: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """Coding rate of vectors of length 1, float32; large where they spread over many directions.

    ``ln det(I + C / (B e) Z Z^T) / 2`` (Yu et al. 2020, MCR2), scaled by ``1 / B + 1 / C`` as in SimDINO (Wu et al.
    2025, arXiv:2502.10385), with e = CODING_ERROR.

    Examples
    --------
    >>> same, apart = torch.eye(4)[[0, 0, 0, 0]], torch.eye(4)
    >>> bool(coding_rate(same) < coding_rate(apart))
    True
    """
    count, width = vectors.shape
    with torch.autocast(vectors.device.type, enabled=False):
        # Z Z^T and Z^T Z give the same determinant; the smaller one is cheaper.
        gram = vectors @ vectors.T if count <= width else vectors.T @ vectors
        matrix = torch.eye(len(gram), device=gram.device) + width / (count * CODING_ERROR) * gram
        factor, failed = torch.linalg.cholesky_ex(matrix)
        # Vectors that are not finite have no factor; the loss says so, and the step is left out.
        half_log_det = torch.where(failed == 0, factor.diagonal().log().sum(), math.nan)
    return half_log_det * (1 / count + 1 / width)


def coding_rate_over_views(vectors: Float[Tensor, "G B C"]) -> Float[Tensor, ""]:
    """Mean coding rate of the global views, each over the batches of all processes."""
    return torch.stack([coding_rate(gather_with_gradient(view)) for view in vectors]).mean()
