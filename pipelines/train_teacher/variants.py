"""Variants: each is planned and scored from its source, all of them in the same way on the same documents."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.microworld.texts import sheet_swaps
from evaluation.statistics import known_mean
from evaluation.tasks import KnowledgeTask, Split
from pipelines.loop.loop import Loop
from pipelines.loop.reward import judge
from pipelines.loop.update import questions_of
from pipelines.plan import Stage, Step
from pipelines.records import Candidate, Edit, Sampling, ScoredUpdate, by_edit, edits_by_document, raw_passage, usage_of
from pipelines.results import SpecSearch, VariantScores
from pipelines.train_teacher import config as configs
from pipelines.train_teacher import controls
from pipelines.train_teacher.config import TRAINED_TEACHER, TrainTeacherConfig, Variant
from pipelines.train_teacher.diagnostics import Diagnostics
from pipelines.train_teacher.plan import POOLED
from pipelines.train_teacher.specifications import best_of, try_all, written
from teacher.filters import first_equal
from teacher.rewards import REFUSALS


class States(NamedTuple):
    """The teacher's states of a run."""

    trained: str | None
    proxy: str | None

    def of(self, state: str) -> str | None:
        """Return the directory name of a state; None is the untrained teacher."""
        return {"trained": self.trained, "proxy": self.proxy}.get(state)


class Comparing:
    """Scores the variants of a run on the test documents, one after another."""

    def __init__(
        self, config: TrainTeacherConfig, loop: Loop, split: Split, states: States, diagnostics: Diagnostics
    ) -> None:
        """Score variants of `config` with the teacher at `states`."""
        self.config, self.loop, self.split, self.states = config, loop, split, states
        self.diagnostics = diagnostics
        self.scored: list[VariantScores] = []
        """Variants so far, in order."""
        self.best_prompt = ""
        """Of the untrained teacher, once it was chosen."""
        self.specs: SpecSearch | None = None
        """The search for the best fixed specification, once it was made."""
        self.intervals: dict[str, Any] = {
            "confidence": config.comparison.confidence,
            "resamples": config.comparison.resamples,
            "seed": loop.seed("bootstrap"),
        }
        """Settings of all bootstrap intervals."""

    def add(self, stage: Stage) -> VariantScores | None:
        """Score the variant of a stage; None where the data cannot have it."""
        variant: Variant = stage.subject
        found = self._score(variant, stage)
        if found is not None:
            self.scored.append(found)
        return found

    def _score(self, variant: Variant, stage: Stage) -> VariantScores | None:
        source, test = variant.source, self.split.test
        if isinstance(source, configs.BaseStudent):
            with self.loop.reporter.step(stage.steps[0], stage.name):
                return self._base(variant)
        if isinstance(source, configs.BestPrompt):
            return self._best_prompt(variant, source, stage)
        if isinstance(source, configs.TeacherSource):
            prompt, state = self.config.teacher.prompt, self.states.of(source.state)
            return self._taught(variant, state, prompt, test, stage.name, stage.steps, keep=self._keep(source))
        *first, last = stage.steps
        with self.loop.reporter.step(first[0], stage.name) if first else nullcontext():
            sampling = self._written(source, stage)
        if sampling is None:
            return None
        with self.loop.reporter.step(last, stage.name):
            return self.score_edits(variant.name, variant.label, sampling, test)

    def _keep(self, source: configs.TeacherSource) -> int:
        """Return how many adapters of a teacher's variant are kept: those of the last teacher."""
        last = "trained" if self.config.loop.rounds else "untrained"
        return self.config.comparison.keep_adapters if source.state == last else 0

    def _written(self, source: Any, stage: Stage) -> Sampling | None:
        """Return the self-edits of a variant that no local teacher samples as it is; None where there can be none."""
        loop, test = self.loop, self.split.test
        match source:
            case configs.RawPassage():
                return _sampling(raw_passage(task.id, task.document.text) for task in test)
            case configs.ExternalGenerator():
                seed = loop.seed("sample", "external")
                return loop.ask(source.sampling, "external", source.prompt, test, n=stage.steps[0].each, seed=seed)
            case configs.FixedSpecification():
                return self._fixed_specification(source)
            case configs.Control():
                return self._control(source.kind, test)
        raise TypeError(f"no variant has a source of type {type(source).__name__}")

    def _control(self, kind: str, test: Sequence[KnowledgeTask]) -> Sampling | None:
        """Return the self-edits of a control."""
        sheets = self.diagnostics.sheets
        if kind == "null_edit":
            return _sampling(controls.null_edits(test))
        if kind == "oracle":
            return None if sheets is None else _sampling(controls.oracle_edits(test, sheets))
        trained = self.edits_of(TRAINED_TEACHER)
        if kind == "other_document":
            return _sampling(controls.other_documents_edits(trained, test))
        if kind == "swapped_values":
            known = sheets is not None
            swaps = {t.id: sheet_swaps(sheets[t.id]) if known else controls.answer_swaps(t) for t in test}  # type: ignore[index]
            return _sampling(controls.swapped_edits(trained, swaps))
        return _sampling(self._at_equal_tokens(trained))

    def _at_equal_tokens(self, trained: Sequence[Edit]) -> list[Edit]:
        """Return the best prompt's lines, as many for each self-edit of the trained teacher as its tokens allow."""
        indices, count = sorted({edit.index for edit in trained}), self.count_tokens()
        seed, test = self.loop.seed("sample", "equal tokens"), self.split.test
        sampled = self.loop.sample(None, self.best_prompt, test, n=POOLED * len(indices), seed=seed).edits
        made = []
        for place, index in enumerate(indices):
            budgets = {edit.document_id: max(edit.tokens, 1) for edit in trained if edit.index == index}
            pool = [e for e in sampled if e.index // POOLED == place and e.document_id in budgets]
            made += [e.model_copy(update={"index": index}) for e in controls.budgeted(pool, budgets, count)]
        return made

    def _fixed_specification(self, source: configs.FixedSpecification) -> Sampling:
        """Return the specification that is best over the training tasks, for every test task."""
        tasks = self.split.train[: source.tasks]
        table = try_all(self.loop, tasks, source.choices, "fixed specification")
        choice, self.specs = best_of(table, source.choices)
        return _sampling(written(task.id, 0, choice) for task in self.split.test)

    def count_tokens(self) -> Callable[[str], int]:
        """Return a function that counts the tokens of a text as the teacher writes it."""
        tokenizer = self.loop.open_teacher.policy.tokenizer
        return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def edits_of(self, name: str) -> tuple[Edit, ...]:
        """Return the self-edits that a variant consists of, without the refused ones that others replaced."""
        count, variant = self.config.comparison.edits, next(v for v in self.scored if v.name == name)
        return tuple(candidate.edit for candidate in variant.candidates if candidate.edit.index < count)

    def _base(self, variant: Variant) -> VariantScores:
        """Return the student without an update."""
        scores = self.loop.base(self.split.test, "comparison").replicates
        return VariantScores(
            name=variant.name,
            label=variant.label,
            candidates=(),
            accuracy={score.document_id: score.accuracy for score in scores if score.accuracy is not None},
            verdicts=_verdicts(scores),
            phrasings=self._by_phrasing(scores),
            cells=_cells(scores),
            failures=_failures(scores),
        )

    def _best_prompt(self, variant: Variant, source: configs.BestPrompt, stage: Stage) -> VariantScores | None:
        """Return the untrained teacher with the prompt that is best on the development documents."""
        means: dict[str, float] = {}
        for place, prompt in enumerate(source.prompts):
            steps = stage.steps[2 * place : 2 * place + 2]
            tried = self._taught(variant, None, prompt, self.split.development, f"{stage.name}, {prompt}", steps)
            mean = known_mean(tried.accuracy.values())
            if mean is not None:
                means[prompt] = mean
        if not means:
            return None
        self.best_prompt = max(means, key=lambda prompt: means[prompt])
        named = variant.model_copy(update={"label": f"{variant.label} ({self.best_prompt.removeprefix('micro-')})"})
        chosen = self._taught(named, None, self.best_prompt, self.split.test, stage.name, stage.steps[-2:])
        notes = {f"development accuracy of {prompt}": mean for prompt, mean in means.items()}
        return chosen.model_copy(update={"notes": {**chosen.notes, **notes}})

    def _taught(
        self,
        variant: Variant,
        state: str | None,
        prompt: str,
        tasks: Sequence[KnowledgeTask],
        what: str,
        steps: Sequence[Step],
        *,
        keep: int = 0,
    ) -> VariantScores:
        """Return the student updated with the self-edits of a teacher at a saved state."""
        settings, loop = self.config.comparison, self.loop
        with loop.reporter.step(steps[0], what):
            seed = loop.seed("sample", "comparison")
            sampling = loop.sample(state, prompt, tasks, n=settings.drawn, seed=seed)
        with loop.reporter.step(steps[1], what):
            if settings.drafts == 1:
                return self.score_edits(variant.name, variant.label, sampling, tasks, keep=keep)
            agreed, chosen = agreement(sampling.edits), most_written(sampling, settings.tried)
            scores = self.score_edits(variant.name, variant.label, chosen, tasks, keep=keep)
        return scores if agreed is None else scores.model_copy(update={"notes": {**scores.notes, "agreement": agreed}})

    def score_edits(
        self, name: str, label: str, sampling: Sampling, tasks: Sequence[KnowledgeTask], *, keep: int = 0
    ) -> VariantScores:
        """Return the variant with the given self-edits.

        Args:
            name: Of the variant.
            label: For people.
            sampling: The self-edits.
            tasks: What they are about; their held-out questions are asked.
            keep: Documents, from the first on, of which the adapter of the first self-edit is kept (`kept_adapters`).
        """
        candidates, redrawn = self._update(sampling, keep)
        updates = [update for candidate in candidates for update in candidate.replicates]
        drawn = [candidate.edit for candidate in candidates]
        notes = self.diagnostics.of(drawn)
        return VariantScores(
            name=name,
            label=label,
            candidates=tuple(candidates),
            accuracy=_means(tasks, ((u.document_id, u.accuracy) for u in updates)),
            verdicts=_verdicts(updates),
            forgetting=_means(tasks, ((u.document_id, u.forgetting) for u in updates)),
            phrasings=self._by_phrasing(updates),
            cells=_cells(updates),
            failures={**_failures(updates), **_without_update(candidates), **_too_long(sampling)},
            edit_tokens=known_mean(edit.tokens for edit in drawn if edit.tokens),
            training_tokens=known_mean(update.tokens for update in updates if update.failure is None),
            usage=usage_of(updates),
            notes={**notes, "redrawn": float(redrawn)} if redrawn else notes,
        )

    def _update(self, sampling: Sampling, keep: int) -> tuple[list[Candidate], int]:
        """Return the first self-edits of each document with their scores, others in place of refused ones.

        A refused one changes places with the document's next, so that indices below `comparison.edits` are those that
        the variant consists of. The number of replacements is returned beside them.
        """
        count = self.config.comparison.edits
        kept = set(list(dict.fromkeys(edit.document_id for edit in sampling.edits if edit.index == 0))[:keep])
        plain = self.config.teacher.reward.model_copy(update={"retention_weight": 0.0, "metric": "probability"})
        waiting = edits_by_document(edit for edit in sampling.edits if edit.index >= count)
        todo = [edit for edit in sampling.edits if edit.index < count]
        found: dict[str, Candidate] = {}
        redrawn = 0
        while todo:
            trials = [
                replace(trial, keep=trial.index == 0 and trial.document_id in kept)
                for trial in self.loop.trials(todo, "comparison")
            ]
            updates = by_edit(self.loop.update(trials, "comparison").replicates)
            judged, todo = judge(Sampling(edits=tuple(todo)), plain, updates=updates), []
            for candidate in judged:
                others = waiting.get(candidate.edit.document_id)
                if candidate.reason in REFUSALS and others:
                    spare = others.pop(0)
                    todo.append(spare.model_copy(update={"index": candidate.edit.index}))
                    candidate = _at(candidate, spare.index)
                found[candidate.edit.id] = candidate
            redrawn += len(todo)
        places = {name: place for place, name in enumerate(dict.fromkeys(edit.document_id for edit in sampling.edits))}
        return sorted(found.values(), key=lambda c: (places[c.edit.document_id], c.edit.index)), redrawn

    def kept_adapters(self, variant: VariantScores) -> dict[str, Path]:
        """Return the directories of the adapters that were kept of a variant's first documents, by document id."""
        chosen = [c for c in variant.candidates if c.edit.index == 0][: self.config.comparison.keep_adapters]
        digests = {c.edit.document_id: u.adapter_digest for c in chosen for u in c.replicates}
        return {name: self.loop.adapter_dir(digest) for name, digest in digests.items() if digest is not None}

    def _by_phrasing(self, updates: Sequence[ScoredUpdate]) -> dict[str, float]:
        """Return the mean accuracy of each question phrasing over all updates."""
        hits: dict[str, list[float]] = defaultdict(list)
        for update in updates:
            if update.failure is None:
                questions = questions_of(self.loop.tasks[update.document_id], "comparison")
                for question, right in zip(questions, update.verdicts, strict=True):
                    if question.phrasing and right is not None:
                        hits[question.phrasing].append(float(right))
        return {phrasing: sum(values) / len(values) for phrasing, values in sorted(hits.items())}


def _sampling(edits: Iterable[Edit]) -> Sampling:
    return Sampling(edits=tuple(edits))


def _at(candidate: Candidate, index: int) -> Candidate:
    """Return a candidate under another index."""
    edit = candidate.edit.model_copy(update={"index": index})
    updates = tuple(update.model_copy(update={"index": index}) for update in candidate.replicates)
    return candidate.model_copy(update={"edit": edit, "replicates": updates})


def most_written(sampling: Sampling, count: int) -> Sampling:
    """Return each document's self-edits by how often they were written, each once (self-consistency).

    Drafts without a self-edit come last, in the order in which they were written, so that a document whose drafts all
    fail keeps its reason.

    Args:
        sampling: All drafts.
        count: Self-edits kept of each document, at least 1; fewer where fewer different ones were written.
    """
    kept: list[Edit] = []
    for drafts in edits_by_document(sampling.edits).values():
        ordered = [drafts[place] for place, _ in _votes(drafts).most_common()]  # ties: the first one written
        ordered += [edit for edit in drafts if edit.edit is None]
        kept += [edit.model_copy(update={"index": place}) for place, edit in enumerate(ordered[:count])]
    return sampling.model_copy(update={"edits": tuple(kept)})


def agreement(drafts: Sequence[Edit]) -> float | None:
    """Return the mean share of a document's drafts that equal its most frequent one, in (0, 1]; None without drafts."""
    return known_mean(
        max(votes.values()) / len(mine) if (votes := _votes(mine)) else None
        for mine in edits_by_document(drafts).values()
    )


def _votes(drafts: Sequence[Edit]) -> Counter[int]:
    """Return how often each self-edit was written, by the place of its first draft."""
    places = first_equal([edit.edit for edit in drafts])
    return Counter(place for place in places if drafts[place].edit is not None)


def _means(tasks: Sequence[KnowledgeTask], values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Return the mean of the known values by document, in the order of the tasks."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for document, value in values:
        found[document].append(value)
    means = {task.id: known_mean(found[task.id]) for task in tasks}
    return {name: mean for name, mean in means.items() if mean is not None}


def _verdicts(updates: Iterable[ScoredUpdate]) -> dict[str, tuple[bool | None, ...]]:
    """Return the verdicts on each document's first self-edit."""
    return {u.document_id: u.verdicts for u in updates if u.index == 0 and u.failure is None}


def _cells(updates: Sequence[ScoredUpdate]) -> float | None:
    return known_mean(known_mean(update.cells) for update in updates)


def _failures(updates: Sequence[ScoredUpdate]) -> dict[str, int]:
    counts = Counter(u.failure.value for u in updates if u.failure is not None)
    for update in updates:
        counts.update({f"answers {reason}": count for reason, count in update.ungraded.items()})
    return dict(counts)


def _without_update(candidates: Sequence[Candidate]) -> dict[str, int]:
    return dict(Counter(c.reason.value for c in candidates if c.reason is not None and not c.replicates))


def _too_long(sampling: Sampling) -> Mapping[str, int]:
    return {"prompt_too_long": len(sampling.too_long)} if sampling.too_long else {}
