"""The methods in words: what each asks of an image, and when to choose it. No torch here."""

from __future__ import annotations

METHODS = {
    "dino": "two views of one image agree, student and teacher: the one to begin with, for every network",
    "dinov2": "DINO and hidden patches besides: plain ViTs whose patch tokens you need (maps, segmentation)",
    "contrast": "views of one image against all other images (MoCo v3): large batches, 256 and more",
    "lejepa": "views agree, vectors stay normally distributed: no teacher and nothing to tune",
    "pair": "do two sub-images come from one image? The simplest question, a yardstick",
    "position": "where does one patch lie beside another? Images with a layout (organs), less so tissue",
    "masked": "draw the hidden patches (MAE): cheap steps, a start for fine-tuning; plain ViTs",
    "latent": "predict the features of hidden blocks (I-JEPA), without colour changes; plain ViTs",
    "supervised": "learn from labels, the yardstick; saccade finetune has more to offer for it",
}
