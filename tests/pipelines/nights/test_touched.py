"""Questions about the very subjects of new documents."""

from __future__ import annotations

from evaluation.data_config import MicroworldData
from evaluation.microworld.nights import draw_nights
from evaluation.retention import retention_probes
from pipelines.nights.scoring import StudentScores
from pipelines.nights.touched import find_touched, suspects, touched_scores

KNOWN = retention_probes(MicroworldData(), 10_000, 0)


def test_wrong_documents_touch_what_is_known_and_honest_ones_do_not() -> None:
    drawn = draw_nights(3, 4, 0, poisoned=2)
    earlier = [document.task for document in drawn[0]]
    honest = find_touched([document.task for document in drawn[1]], earlier, KNOWN)
    assert honest == ((), (), ())
    wrong = [document for document in drawn[2] if document.kind == "poisoned"]
    touched = find_touched([document.task for document in wrong], earlier, KNOWN)
    names = {name for document in wrong for name in document.task.document.entities}
    assert touched.general
    assert all(any(name in question.question for name in names) for question in touched.general)
    asked = {f"{task.id}/{i}": q for task in earlier for i, q in enumerate(task.comparison_questions)}
    of_the_same = {key for key, question in asked.items() if any(name in question.question for name in names)}
    found = {f"{name}/{place}" for name, place in touched.earlier}
    assert found <= of_the_same
    if of_the_same:
        assert len(found) >= 0.8 * len(of_the_same)


def test_scores_pair_the_same_questions() -> None:
    drawn = draw_nights(2, 4, 0, poisoned=1)
    earlier = [document.task for document in drawn[0]]
    touched = find_touched([document.task for document in drawn[1]], earlier, KNOWN[:50])
    count = len(touched.general)

    def scores(right: bool) -> StudentScores:
        mine = {task.id: (right,) * len(task.comparison_questions) for task in earlier}
        return StudentScores(right=mine, from_memory={}, probes=(), empty=0, answered=0)

    pairs = touched_scores(touched, scores(True), scores(False), (True,) * count, (False,) * count)
    assert len(pairs) == len(touched.earlier) + count
    assert all((pair.candidate, pair.reference) == (1.0, 0.0) for pair in pairs)
    assert len({pair.document for pair in pairs}) == len(pairs)
    assert suspects(touched, pairs) == ()
    lost = touched_scores(touched, scores(False), scores(True), (False,) * count, (True,) * count)
    assert set(suspects(touched, lost)) == set(touched.owners) <= {d.task.id for d in drawn[1]}
    same = touched_scores(touched, scores(True), scores(True), (True,) * count, (True,) * count)
    assert suspects(touched, same) == suspects(touched, lost)  # no harm was seen of these, but no good either
