"""The page of sentences: which word looks at which. The text model is loaded at the first question."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Body, Response
from starlette.exceptions import HTTPException

from saccade.errors import UsageError
from saccade.web.catalog import Desk, is_text_model, model_names
from saccade.web.discover import spelt

if TYPE_CHECKING:
    from saccade.attention.text_lessons import Readings
    from saccade.models.backbones.text import Positions, Reading

BUILT_IN = "all-MiniLM-L6-v2"
KNOWN_QUESTIONS = 64


@dataclasses.dataclass(frozen=True)
class Question:
    """A text, the folder of a model ("" is the built-in one), and whether its positions are told."""

    model: str
    text: str
    positions: bool


class Shelf:
    """What was asked, by the id that the page has for it; readings that were dropped are made again."""

    def __init__(self, desk: Desk):
        self.desk = desk
        self.models = {desk.id_of("text", name): name for name in ("", *filter(is_text_model, desk.models))}
        self._asked: OrderedDict[str, Question] = OrderedDict()
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

    def ask(self, question: Question) -> str:
        named = json.dumps(dataclasses.astuple(question)).encode()
        key = self.desk.id_of("words", hashlib.sha256(named).hexdigest())
        with self._turn:
            self._asked[key] = question
            while len(self._asked) > KNOWN_QUESTIONS:
                self._asked.popitem(last=False)
        return key

    def reading(self, key: str) -> tuple[Question, Reading]:
        question = self._asked.get(key)
        if question is None:
            raise HTTPException(404, "no such text: read it again")
        positions: Positions = "trained" if question.positions else "constant"
        return question, self.readings().read(question.model, question.text, positions)


def router(desk: Desk) -> APIRouter:
    api = APIRouter(prefix="/words")
    shelf = Shelf(desk)

    @api.get("/models")
    def models() -> list[dict[str, str]]:
        named = zip(shelf.models, [BUILT_IN, *model_names(list(shelf.models.values())[1:])])
        return [{"id": key, "name": spelt(name)} for key, name in named]

    @api.post("")
    def read(
        model: str = Body(), text: str = Body(max_length=1_000_000), positions: bool = Body(True)
    ) -> dict[str, Any]:
        name = shelf.model(model)
        key = shelf.ask(Question(name, text, positions))
        _, reading = shelf.reading(key)
        from saccade.attention.text_lessons import facts

        return {"id": key} | facts(shelf.readings().model(name), reading)

    @api.get("/look-up")
    def look_up(model: str, token: int) -> dict[str, Any]:
        from saccade.attention.text_lessons import look_up as run

        return run(shelf.readings().model(shelf.model(model)), token)

    @api.get("/{key}/weights")
    def weights(key: str, layer: int, head: str = "all") -> Response:
        """float32: all heads of a layer [H N N], or one of them or their mean [N N]."""
        _, reading = shelf.reading(key)
        found = reading.attention(layer=layer)
        if head == "mean":
            found = found.mean(dim=0)
        elif head != "all":
            if not head.isdigit() or int(head) >= reading.heads:
                raise UsageError("no such head", got=head, expected=f"0 to {reading.heads - 1}, mean or all")
            found = found[int(head)]
        return Response(found.float().contiguous().numpy().tobytes(), media_type="application/octet-stream")

    @api.get("/{key}/pair")
    def pair(key: str, layer: int, query: int, answer: int, head: int | None = None) -> dict[str, Any]:
        """Every number between two tokens; no head: the one in which the pair has the largest weight."""
        _, reading = shelf.reading(key)
        head = reading.strongest(query, answer, layer=layer) if head is None else head
        found = reading.pair(query, answer, layer=layer, head=head)
        numbers = {name: getattr(found, name).tolist() for name in ("query", "key", "products")}
        shown = {name: getattr(found, name) for name in ("scale", "score", "log_sum", "weight")}
        # JSON has no infinity: a hidden key has no score.
        score = found.score if found.visible else None
        return numbers | shown | {"head": head, "visible": found.visible, "score": score}

    @api.get("/{key}/order")
    def order(key: str, seed: int = 0) -> dict[str, Any]:
        from saccade.attention.text_lessons import order_test

        question, _ = shelf.reading(key)
        return dataclasses.asdict(order_test(shelf.readings().model(question.model), question.text, seed=seed))

    return api
