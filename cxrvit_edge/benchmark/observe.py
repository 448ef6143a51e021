"""Every candidate over labelled films: each film is read and preprocessed once, as triage does it, and run by all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from cxrvit_edge.benchmark.scenarios import Film as Input
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import CxrVitError, InputError, Reason
from cxrvit_edge.findings import judge
from cxrvit_edge.labels import Problem, Study
from cxrvit_edge.parity import Observation
from cxrvit_edge.plain_text import printable
from cxrvit_edge.prepare import Film, Recipe, place, prepare
from cxrvit_edge.preprocess import PreprocessConfig
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.workers import Workers

AHEAD = 4  # films read while one is run
KEPT = 32  # films whose tensors are kept, for `scenarios`
FIRST = 5  # files that a problem names


@dataclass
class Observed:
    """by_candidate: name -> an observation each of `studies`, in order; inputs: the first films as the network gets
    them; problems: films that no candidate saw, since they cannot be read or triage turns them away unseen, and those
    of one content, which count once, or not at all where their labels differ; failed: name -> why a candidate ended
    early, which has no observations then."""

    studies: list[Study]
    by_candidate: dict[str, list[Observation]]
    inputs: list[Input] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def observe(
    sessions: Mapping[str, Sessions],
    studies: Sequence[Study],
    bundle: Bundle,
    progress: Callable[[float], None] = lambda _: None,
) -> Observed:
    """In batches of one, in turn; a study's own view comes before what the file says. progress: 0 to 1."""
    seen = Observed([], {name: [] for name in sessions})
    told: dict[str, list[str]] = {"unreadable": [], "refused": [], "duplicate": [], "contradiction": []}
    first: dict[str, int] = {}  # SHA-256 -> place among the studies
    apart: set[int] = set()  # of those with several labels
    with closing(_films(studies, bundle)) as films:
        for done, (study, film) in enumerate(films, 1):
            if film.error is not None:
                told["refused" if film.error.reason.status == "rejected" else "unreadable"].append(str(film.error))
            elif (before := first.setdefault(film.sha256 or "", len(seen.studies))) == len(seen.studies):
                _run(sessions, study, film, bundle, seen)
            else:
                other = seen.studies[before]
                alike = study.label == other.label or None in (study.label, other.label)
                kind = "duplicate" if alike else "contradiction"
                names = f"{printable(study.path.name)}: the same content as {printable(other.path.name)}"
                told[kind].append(
                    f"{names}; {'counted once' if kind == 'duplicate' else 'labelled otherwise: none is used'}"
                )
                if kind == "contradiction":
                    apart.add(before)
            progress(done / len(studies))
    for name in seen.failed:
        del seen.by_candidate[name]
    if apart:
        seen.studies = [s for i, s in enumerate(seen.studies) if i not in apart]
        seen.by_candidate = {
            name: [o for i, o in enumerate(own) if i not in apart] for name, own in seen.by_candidate.items()
        }
    seen.problems = [Problem(kind, len(lines), tuple(lines[:FIRST])) for kind, lines in told.items() if lines]
    return seen


def _run(sessions: Mapping[str, Sessions], study: Study, film: Film, bundle: Bundle, seen: Observed) -> None:
    assert film.tensor is not None and film.geometry is not None and film.sha256 is not None
    graph = bundle.graph_for(film.view)
    seen.studies.append(study)
    if len(seen.inputs) < KEPT:
        seen.inputs.append(Input(graph, film.tensor))
    for name, own in sessions.items():
        if name in seen.failed:
            continue
        judgement, refused = None, None
        try:
            outputs = own[graph].run(film.tensor[None])
        except CxrVitError as error:
            seen.failed[name] = str(error)
            continue
        try:
            judgement = judge(outputs, 0, bundle, film.view, film.geometry, film.description)
        except InputError as error:
            refused = error.reason.value
        about = (film.sha256, study.patient, study.source, study.split, film.view, study.label)
        logits = np.array(outputs.logits[0], np.float32)
        seen.by_candidate[name].append(Observation(*about, logits, judgement, refused))


def _films(studies: Sequence[Study], bundle: Bundle) -> Generator[tuple[Study, Film], None, None]:
    """In order, a few read ahead in a thread; files whose decoders may crash in a worker process, as in triage."""
    recipe = Recipe(PreprocessConfig.from_dict(bundle.manifest.preprocessing))
    rest = iter(studies)
    with Workers(recipe) as workers, ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        try:
            ahead = deque((s, pool.submit(_film, s, recipe, workers)) for s in islice(rest, AHEAD))
            while ahead:
                study, film = ahead.popleft()
                yield study, film.result()
                ahead.extend((s, pool.submit(_film, s, recipe, workers)) for s in islice(rest, 1))
        finally:
            workers.close()  # a film that takes long is not waited for
            pool.shutdown(wait=True, cancel_futures=True)


def _film(study: Study, recipe: Recipe, workers: Workers) -> Film:
    path, name = str(study.path), printable(study.path.name)
    try:
        film = prepare(path, recipe) if place(path) == "thread" else workers.prepare(path)
    except Exception as error:  # a fault of ours: the other films stand
        return Film(error=InputError(Reason.INTERNAL, f"{name}: unexpected {type(error).__name__}; report it"))
    if film.error is None and study.view != "unknown":
        film = replace(film, view=study.view)
    if film.error is None and film.view == "lateral":
        message = f"{name}: the labels say lateral; leave it out, or send the frontal view"
        film = Film(film.sha256, error=InputError(Reason.LATERAL_VIEW, message))
    return film
