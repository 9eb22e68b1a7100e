"""What every backbone has. Those with attention are an ``AttentiveNetwork`` (``nn/attention.py``) as well."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from saccade.models.settings import BackboneSettings, Capabilities, build_arguments


class Network(nn.Module):
    """Abstract: pixels [B C *size] to ``Features``.

    Parameters
    ----------
    settings : BackboneSettings
        What makes this network.
    dim : int
        Width D of the features.
    stride_px : int
        Side in pixels of the part of the image that one token stands for.
    capabilities : Capabilities, optional
        Where they differ from those of ``settings``.
    arguments : mapping, optional
        Arguments of ``build`` where they differ from those of ``settings``.
    """

    settings: BackboneSettings

    def __init__(
        self,
        settings: BackboneSettings,
        *,
        dim: int,
        stride_px: int,
        capabilities: Capabilities | None = None,
        arguments: Mapping[str, object] | None = None,
    ):
        super().__init__()
        self.settings = settings
        self.name, self.channels = settings.name, settings.channels
        self.dim, self.stride_px = dim, stride_px
        self.capabilities = capabilities or settings.capabilities
        self.checkpointing = False
        self._arguments = dict(arguments or build_arguments(settings))

    def config(self) -> dict[str, object]:
        """Arguments of ``backbones.build.build`` that make this network again."""
        return dict(self._arguments)
