"""``saccade attend``: where a model looks, on an image, a volume, a slide or a sentence."""

from __future__ import annotations

from pathlib import Path

from saccade import runtime
from saccade.attention import image as image_attention
from saccade.attention import slide as slide_attention
from saccade.attention import text as text_attention
from saccade.attention.options import AttendOptions
from saccade.attention.slide import SlideAttention, SlideOptions
from saccade.attention.volume import VolumeAttention
from saccade.data.open import absolute, open_source
from saccade.data.slides.slide_source import SlideTiles
from saccade.errors import UsageError
from saccade.features.embed_slides import Embedder, as_trained, load_for_tiles
from saccade.hierarchy import attend as hierarchy_attention
from saccade.models.text_tokens import TextOptions
from saccade.train.loop import Console, Quiet


def attend(
    model: str | Path, image: str | Path, *, options: AttendOptions | None = None
) -> image_attention.ImageAttention | VolumeAttention:
    """Compute the attention map of one query over an image or a volume; for CNNs, token similarity.

    Parameters
    ----------
    model : str or Path
        Run folder, weights file, ``random:NAME`` or ``timm:NAME``.
    image : str or Path
        An image or volume file.
    options : AttendOptions, optional
        Query, layer, head, rollout, threshold.

    Returns
    -------
    ImageAttention or VolumeAttention
        The map; ``.save(path)`` writes PNG, SVG or CSV by suffix (a volume also NIfTI).

    Examples
    --------
    >>> import saccade
    >>> from PIL import Image
    >>> Image.effect_noise((64, 64), 50).convert("RGB").save("image.png")
    >>> options = saccade.AttendOptions(query="20,40", size_px=64)
    >>> amap = saccade.attend("random:vit_micro_patch8", "image.png", options=options).amap
    >>> amap.values.shape  # heads, rows, columns of patches
    (4, 8, 8)
    """
    return image_attention.attend(model, image, options or AttendOptions())


def attend_slide(
    model: str | Path, slide: str | Path, *, options: SlideOptions | None = None, console: Console | None = None
) -> SlideAttention:
    """Compute a score for every tile of a slide: similarity to the slide or to one tile, or attention in the tile.

    Parameters
    ----------
    model : str or Path
        Run folder, weights file, ``random:NAME`` or ``timm:NAME``.
    slide : str or Path
        A whole-slide image.
    options : SlideOptions, optional
        Query, level, tiling.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    SlideAttention
        ``.save(path)`` writes PNG, pyramidal TIFF, GeoJSON for QuPath or CSV by suffix, or a folder with all of them.

    Examples
    --------
    >>> import saccade
    >>> slide = "synthetic:slide?n=1&size=768&region=128&folder=slide"
    >>> options = saccade.SlideOptions(tiling=saccade.Tiling(mpp=1.0, tile_px=64))
    >>> scores = saccade.attend_slide("random:vit_micro_patch8_w32", slide, options=options)
    >>> scores.heat.scores.shape  # one score per tile with tissue
    (64,)
    """
    options, console = options or SlideOptions(), console or Quiet()
    source = open_source(slide, tiling=as_trained(model, options.tiling))
    if not isinstance(source, SlideTiles):
        raise UsageError(f"{slide} is not a whole-slide image", hint="for images: saccade attend MODEL IMAGE")
    embedder = Embedder(load_for_tiles(model, source), source, say=console.say, max_bad=options.max_bad)
    return slide_attention.attend_slide(embedder, options, lambda done, total: console.progress(done, total, {}))


def attend_hierarchy(
    model: str | Path,
    slide: str | Path,
    *,
    level: str | None = None,
    slide_mpp: float | None = None,
    max_bad: float = 0.05,
    console: Console | None = None,
) -> list[SlideAttention]:
    """Compute the attention maps of a hierarchy on a slide.

    Parameters
    ----------
    model : str or Path
        A hierarchy, or a run of ``finetune_slides``, whose head then weighs the regions.
    slide : str or Path
        A whole-slide image.
    level : str, optional
        region, tile or composed; None: all of them.
    slide_mpp : float, optional
        µm per pixel at full resolution, where the file does not state it.
    max_bad : float
        Largest fraction of unreadable tiles that is tolerated.
    console : Console, optional
        Receives messages and progress.

    Returns
    -------
    list of SlideAttention
        One per level.

    Examples
    --------
    ``hipt`` is a run of ``pretrain`` with ``backbone="hipt"``.

    >>> maps = saccade.attend_hierarchy("hipt", "slide.svs")  # doctest: +SKIP
    >>> paths = [path for level in maps for path in level.save("maps")]  # doctest: +SKIP
    """
    runtime.keep_freed_memory()
    settings = {} if slide_mpp is None else {"data.slide_mpp": slide_mpp}
    return hierarchy_attention.attend(
        Path(model), str(absolute(slide)), level, settings, console or Quiet(), max_bad=max_bad
    )


def attend_text(
    text: str, *, model: str | Path | None = None, options: TextOptions | None = None
) -> text_attention.TextAttention:
    """Compute the attention between the words or tokens of a sentence in one layer of a text model.

    Parameters
    ----------
    text : str
        The sentence.
    model : str or Path, optional
        A folder of the transformers library; None: all-MiniLM-L6-v2 (extra ``text``).
    options : TextOptions, optional
        Query, layer, head, tokens.

    Returns
    -------
    TextAttention
        ``.text()`` prints bars; ``.save(path)`` writes SVG, PNG, CSV or HTML by suffix.
    """
    return text_attention.attend_text(model, text, options or TextOptions())
