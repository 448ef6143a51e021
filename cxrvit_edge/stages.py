"""What is done to one input, or to a batch of them, whichever thread does it: prepare, run, judge."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.discover import Found
from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.findings import Finding, Judgement, judge
from cxrvit_edge.item import Item
from cxrvit_edge.journal import Owner
from cxrvit_edge.ledger import Mode
from cxrvit_edge.plain_text import printable
from cxrvit_edge.prepare import Film, Recipe, place, prepare
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.radiograph import Limits, View
from cxrvit_edge.report import thumbnails
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.runtime.session import Explainer, Session
from cxrvit_edge.trace import NoTrace
from cxrvit_edge.workers import Workers

logger = logging.getLogger("cxrvit_edge")


@dataclass(frozen=True)
class Plan:
    """What is the same for every input.

    most: images of a batch. mode: auto runs what is ready, throughput waits for `most` while more may come, latency is
    auto with `most` 1. view_of: view of a file by a table, None where that says nothing; pictures: folder for
    thumbnails, None for none.
    """

    bundle: Bundle
    sessions: Sessions
    owner: Owner
    workers: int
    most: int
    mode: Mode = "auto"
    limits: Limits = field(default_factory=Limits)
    view_of: Callable[[Found], View | None] | None = None
    pictures: Path | None = None
    trace: NoTrace = field(default_factory=NoTrace)


class Stages:
    """What an input goes through under one plan; `recipe` is what workers prepare by."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        config = PreprocessConfig.from_dict(plan.bundle.manifest.preprocessing)
        self.recipe = Recipe(config, plan.limits, plan.pictures is not None)

    def prepare(self, item: Item, workers: Workers) -> None:
        """Fill in the item's film, here or by a worker. InputError if there is none to judge."""
        found = item.found
        item.size, item.mtime_ns = found.size, found.mtime_ns
        if found.problem is not None:
            raise found.problem
        try:
            status = os.stat(found.path)  # noqa: PTH116  before reading, so that a later change is seen
            item.size, item.mtime_ns = status.st_size, status.st_mtime_ns
        except (OSError, ValueError):
            pass  # load says what is wrong
        if place(found.path) == "thread":
            item.film = prepare(found.path, self.recipe, item.enter)
        else:
            lane = f"{threading.current_thread().name}, worker"

            def span(stage: str, start: float, end: float) -> None:
                item.enter(stage, start, lane)
                item.enter("queue", end, lane)

            item.film = workers.prepare(found.path, span)
        film = item.film
        if film.error is not None:
            raise film.error
        film.view, film.warnings = self._view(film, found)
        if film.view == "lateral":
            message = f"{printable(Path(found.path).name)}: the table of views says lateral; send the frontal view"
            raise InputError(Reason.LATERAL_VIEW, message)

    def _view(self, film: Film, found: Found) -> tuple[View, tuple[str, ...]]:
        """View and warnings; the table comes before the header."""
        view = self._plan.view_of(found) if self._plan.view_of else None
        if view is None or view == film.view:
            return film.view, film.warnings
        if film.view == "unknown":
            return view, film.warnings
        said = f"the header says view {film.view}, the table of views {view}: the table is believed"
        return view, (*film.warnings, said)

    def run(self, batch: list[Item]) -> None:
        """Outputs or an error for each item; a batch that fails as a whole is tried one by one."""
        at = perf_counter()
        for item in batch:
            item.enter("run", at)
            item.batch = len(batch)
        session = self._plan.sessions[self._plan.bundle.graph_for(batch[0].film.view)]
        try:
            _infer(session, batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
            else:
                logger.warning("a batch of %d failed (%s): trying one by one", len(batch), type(error).__name__)
                for item in batch:
                    _infer_alone(session, item)
        at = perf_counter()
        for item in batch:
            item.enter("queue", at)
        for item in batch:
            if self._plan.pictures is not None and isinstance(session, Explainer):
                _explain(session, item)
            item.film.tensor = None

    def judge(self, item: Item) -> Finding:
        """The finding of an item, with outputs or an error; its thumbnail is written. OSError if it cannot be."""
        judgement = None
        item.enter("interpret")
        film = item.film
        try:
            if item.outputs is not None and film.geometry is not None:
                judgement = judge(
                    item.outputs,
                    0,
                    self._plan.bundle,
                    film.view,
                    film.geometry,
                    film.description,
                    self._plan.owner.rule,
                )
        except Exception as error:
            item.fail(error)
            if isinstance(error, InputError) and error.reason is Reason.LATERAL_VIEW:
                film.view = "lateral"
        item.enter("write")
        try:
            self._save(item, judgement)
        except OSError:
            raise
        except Exception as error:  # a picture less is no reason to lose the result
            logger.warning("no thumbnail of %s (%s)", printable(item.found.file), type(error).__name__)
        item.outputs = film.thumbnail = film.description = item.relevance = None
        item.enter("queue")
        return self._finding(item, judgement)

    def _save(self, item: Item, judgement: Judgement | None) -> None:
        film, folder = item.film, self._plan.pictures
        if folder is None or film.thumbnail is None or film.sha256 is None:
            return
        if judgement is None or item.outputs is None:
            thumbnails.save(folder, film.sha256, film.thumbnail, None, None, None)
        else:
            severity_map, lungs = item.outputs.severity_map[0, 0], item.outputs.lung_mask[0]
            thumbnails.save(folder, film.sha256, film.thumbnail, film.geometry, severity_map, lungs, item.relevance)

    def _finding(self, item: Item, judgement: Judgement | None) -> Finding:
        reason = None if item.error is None else _reason(item)
        ood = judgement.ood if judgement else None
        told = (ood.warning,) if ood is not None and ood.over else ()
        return Finding(
            file=item.found.file,
            status="ok" if reason is None else reason.status,
            sha256=item.film.sha256,
            size=item.size,
            mtime_ns=item.mtime_ns,
            reason=None if reason is None else {"code": reason.value, "message": _message(item)},
            warnings=(*item.film.warnings, *told),
            view=item.film.view,
            probabilities=judgement.probabilities if judgement else None,
            label=judgement.label if judgement else None,
            flags=judgement.flags if judgement else None,
            prediction_set=judgement.prediction_set if judgement else None,
            severity=judgement.severity if judgement else None,
            priority=judgement.priority if judgement else "review",
            ood=ood,
            timings_ms={stage: round(ms, 3) for stage, ms in item.ms().items()},
            **self._plan.owner._asdict(),
        )


def _infer(session: Session, batch: list[Item]) -> None:
    outputs = session.run(np.stack([item.film.tensor for item in batch if item.film.tensor is not None]))
    for index, item in enumerate(batch):
        item.outputs = outputs.rows(slice(index, index + 1))


def _infer_alone(session: Session, item: Item) -> None:
    try:
        _infer(session, [item])
    except Exception as error:
        item.fail(error)


def _explain(session: Explainer, item: Item) -> None:
    """Relevance to the label it will have; a picture less is no reason to lose the result."""
    if item.outputs is None or item.film.tensor is None:
        return
    item.enter("interpret")
    try:
        item.relevance = session.explain(item.film.tensor[None], [int(item.outputs.logits[0].argmax())])[0]
    except Exception as error:
        logger.warning("no relevance of %s (%s)", printable(item.found.file), type(error).__name__)
    item.enter("queue")


def _reason(item: Item) -> Reason:
    return item.error.reason if isinstance(item.error, InputError) else Reason.INTERNAL


def _message(item: Item) -> str:
    if isinstance(item.error, InputError):
        return str(item.error)
    name = printable(Path(item.found.path).name)
    if isinstance(item.error, MemoryError):
        return f"{name}: does not fit into memory; give --workers 1, or send a smaller copy"
    what = f"unexpected {type(item.error).__name__} in stage {item.failed_in}"
    return f"{name}: {what}; run again, and report it if it stays"
