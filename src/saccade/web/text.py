"""The page of sentences: attention between words. The text model is loaded at the first request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Body, Response
from starlette.exceptions import HTTPException

from saccade.base.cache import LruCache
from saccade.errors import out_of_range
from saccade.web.catalog import Catalog, is_text_model, model_names
from saccade.web.discover import encodable

if TYPE_CHECKING:
    from saccade.attention.text_lessons import Readings
    from saccade.models.backbones.text import Positions, Reading

BUILT_IN = "all-MiniLM-L6-v2"
MAX_QUESTIONS = 64


@dataclasses.dataclass(frozen=True)
class TextQuestion:
    """A text, the folder of a model ("" is the built-in one), and whether positions are used."""

    model: str
    text: str
    positions: bool


class TextSession:
    """Recent texts by their ids; evicted readings are computed again."""

    def __init__(self, catalog: Catalog):
        self.catalog = catalog
        self.models = {catalog.id_of("text", name): name for name in ("", *filter(is_text_model, catalog.models))}
        self._asked: LruCache[str, TextQuestion] = LruCache(MAX_QUESTIONS)
        self._readings: Readings | None = None
        self._turn = threading.Lock()

    def readings(self) -> Readings:
        with self._turn:
            if self._readings is None:
                from saccade.attention.text_lessons import Readings

                self._readings = Readings()
            return self._readings

    def model(self, key: str) -> str:
        if key not in self.models:
            raise HTTPException(404, "no such model")
        return self.models[key]

    def ask(self, question: TextQuestion) -> str:
        encoded = json.dumps(dataclasses.astuple(question)).encode()
        key = self.catalog.id_of("words", hashlib.sha256(encoded).hexdigest())
        self._asked.put(key, question)
        return key

    def reading(self, key: str) -> tuple[TextQuestion, Reading]:
        question = self._asked.get(key)
        if question is None:
            raise HTTPException(404, "this text has expired: enter it again")
        positions: Positions = "trained" if question.positions else "constant"
        return question, self.readings().read(question.model, question.text, positions)


def router(catalog: Catalog) -> APIRouter:
    api = APIRouter(prefix="/sentences")
    session = TextSession(catalog)

    @api.get("/models")
    def models() -> list[dict[str, str]]:
        pairs = zip(session.models, [BUILT_IN, *model_names(list(session.models.values())[1:])])
        return [{"id": key, "name": encodable(name)} for key, name in pairs]

    @api.post("")
    def read(
        model: str = Body(), text: str = Body(max_length=1_000_000), positions: bool = Body(True)
    ) -> dict[str, Any]:
        name = session.model(model)
        key = session.ask(TextQuestion(name, text, positions))
        _, reading = session.reading(key)
        from saccade.attention.text_lessons import facts

        return {"id": key} | facts(session.readings().model(name), reading)

    @api.get("/look-up")
    def look_up(model: str, token: int) -> dict[str, Any]:
        from saccade.attention.text_lessons import look_up as run

        return run(session.readings().model(session.model(model)), token)

    @api.get("/{key}/weights")
    def weights(key: str, layer: int, head: str = "all") -> Response:
        """float32: all heads of a layer [H N N], or one of them or their mean [N N]."""
        _, reading = session.reading(key)
        weights_ = reading.attention(layer=layer)
        if head == "mean":
            weights_ = weights_.mean(dim=0)
        elif head != "all":
            if not head.isdigit() or int(head) >= reading.heads:
                raise out_of_range("head", head, reading.heads - 1, also="mean, all")
            weights_ = weights_[int(head)]
        return Response(weights_.float().contiguous().numpy().tobytes(), media_type="application/octet-stream")

    @api.get("/{key}/pair")
    def pair(key: str, layer: int, query: int, answer: int, head: int | None = None) -> dict[str, Any]:
        """Every number between two tokens; no head: the one in which the pair has the largest weight."""
        _, reading = session.reading(key)
        head = reading.strongest(query, answer, layer=layer) if head is None else head
        qk_pair = reading.pair(query, answer, layer=layer, head=head)
        numbers = {name: getattr(qk_pair, name).tolist() for name in ("query", "key", "products")}
        scalars = {name: getattr(qk_pair, name) for name in ("scale", "score", "log_sum", "weight")}
        # JSON has no infinity: a masked key has no score.
        score = qk_pair.score if qk_pair.visible else None
        return numbers | scalars | {"head": head, "visible": qk_pair.visible, "score": score}

    @api.get("/{key}/order")
    def order(key: str, seed: int = 0) -> dict[str, Any]:
        from saccade.attention.text_lessons import order_test

        question, _ = session.reading(key)
        return dataclasses.asdict(order_test(session.readings().model(question.model), question.text, seed=seed))

    return api
