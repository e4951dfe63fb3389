"""Variants: each is scored from its source, all of them in the same way on the same documents."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.agreement import rule_verdicts
from evaluation.graders import DomainGrading
from evaluation.statistics import known_mean, known_means
from evaluation.tasks import KnowledgeTask, Split
from pipelines.loop.loop import Loop
from pipelines.loop.reward import judge
from pipelines.loop.update import grade_items, questions_of
from pipelines.plan import Stage, Step
from pipelines.records import (
    Answered,
    Candidate,
    Edit,
    Sampling,
    ScoredUpdate,
    SpecSearch,
    VariantScores,
    by_document,
    raw_passage,
)
from pipelines.train_teacher import edits as self_edits
from pipelines.train_teacher import sources
from pipelines.train_teacher.config import TrainTeacherConfig
from pipelines.train_teacher.edits import Writer, only_missed, writer_of
from pipelines.train_teacher.plan import pooled, written
from pipelines.train_teacher.sources import TRAINED_TEACHER, Variant
from student.config import Objective
from student.memory import ExternalMemory, MemoryEntry
from teacher.prompts import prompt_template
from teacher.rewards import REFUSALS
from teacher.self_edit import edit_of


class Comparing:
    """Scores the variants of a run on the test documents, one after another."""

    def __init__(
        self,
        config: TrainTeacherConfig,
        loop: Loop,
        split: Split,
        states: Mapping[str, str | None],
        diagnostics: self_edits.Diagnostics,
    ) -> None:
        """Score variants of `config` with the teacher's `states`, by `TeacherSource.state`."""
        self.config, self.loop, self.split, self.states = config, loop, split, states
        self.diagnostics = diagnostics
        self.scored: list[VariantScores] = []
        """Variants so far, in order."""
        self.best_prompt = ""
        """Of the untrained teacher, once it was chosen."""
        self.specs: SpecSearch | None = None
        """The search for the best fixed specification, once it was made."""
        self.intervals: dict[str, Any] = config.comparison.model_dump(include={"confidence", "resamples"})
        """Settings of all bootstrap intervals."""
        self.intervals["seed"] = loop.seed("bootstrap")

    def add(self, stage: Stage) -> VariantScores | None:
        """Score the variant of a stage; None where the data cannot have it."""
        found = self._score(stage.subject, stage)
        if found is not None:
            self.scored.append(found)
        return found

    def _score(self, variant: Variant, stage: Stage) -> VariantScores | None:
        source, test = variant.source, self.split.test
        if isinstance(source, sources.BaseStudent):
            with self.loop.reporter.step(stage.steps[0], stage.name):
                return self._scores(variant, self.loop.base(test, "comparison"), test)
        if isinstance(source, sources.PassageInContext | sources.Retrieval):
            with self.loop.reporter.step(stage.steps[0], stage.name):
                return self._scores(variant, self.loop.with_passages(self._passages(source)), test)
        if isinstance(source, sources.BestPrompt):
            return self._best_prompt(variant, source, stage)
        if isinstance(source, sources.TeacherSource):
            keep = self.config.comparison.keep_adapters if source.state == self.config.last_state else 0
            write = partial(self.loop.sample, self.states.get(source.state), self.config.teacher.prompt)
            return self._taught(variant, write, test, stage.name, stage.steps, keep=keep)
        if isinstance(source, sources.Sampled):
            return self._taught(variant, writer_of(self.loop, source), test, stage.name, stage.steps)
        *first, last_step = stage.steps
        with self.loop.reporter.step(first[0], stage.name) if first else nullcontext():
            edits = self._written(source)
        if edits is None:
            return None
        with self.loop.reporter.step(last_step, stage.name):
            return self.score_edits(variant, edits, test)

    def _passages(self, source: sources.PassageInContext | sources.Retrieval) -> dict[str, list[str]]:
        """Return by document id what stands before each held-out question."""
        test = self.split.test
        if isinstance(source, sources.PassageInContext):
            return {task.id: [task.document.text] * len(questions_of(task, "comparison")) for task in test}
        documents = (task.document for task in test)
        memory = ExternalMemory(MemoryEntry(id=each.id, title=each.title, text=each.text) for each in documents)

        def best(question: str) -> str:
            return " ".join(hit.passage for hit in memory.search(question, source.passages))

        return {task.id: [best(asked.question) for asked in questions_of(task, "comparison")] for task in test}

    def _written(self, source: Any) -> Iterable[Edit] | None:
        """Return the self-edits of a variant for which no model writes; None where there can be none."""
        loop, test, sheets = self.loop, self.split.test, self.diagnostics.sheets
        match source:
            case sources.RawPassage():
                return [raw_passage(task.id, task.document.text) for task in test]
            case sources.FixedSpecification():
                table = try_all(loop, self.split.train[: source.tasks], source.choices, "fixed specification")
                choice, self.specs = best_of(table, source.choices)
                return [specification(task.id, 0, choice) for task in test]
            case sources.Control(kind="null_edit"):
                return self_edits.null_edits(test)
            case sources.Control(kind="oracle"):
                return None if sheets is None else self_edits.oracle_edits(test, sheets)
            case sources.Control(kind="other_document"):
                return self_edits.other_documents_edits(self.edits_of(TRAINED_TEACHER), test)
        raise TypeError(f"no variant has a source of type {type(source).__name__}")

    def _at_equal_tokens(self, sampled: Sequence[Edit], pooled: int) -> tuple[Edit, ...]:
        """Return a self-edit for each of the trained teacher's, as long as that, from `pooled` sampled ones each."""
        trained, count = self.edits_of(TRAINED_TEACHER), self.count_tokens()
        found: list[Edit] = []
        for place, index in enumerate(sorted({edit.index for edit in trained})):
            budgets = {edit.document_id: max(edit.tokens, 1) for edit in trained if edit.index == index}
            pool = [e for e in sampled if e.index // pooled == place and e.document_id in budgets]
            found += [e.model_copy(update={"index": index}) for e in self_edits.budgeted(pool, budgets, count)]
        return tuple(found)

    def count_tokens(self) -> Callable[[str], int]:
        """Return a function that counts the tokens of a text as the teacher writes it."""
        tokenizer = self.loop.open_teacher.policy.tokenizer
        return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def edits_of(self, name: str) -> tuple[Edit, ...]:
        """Return the self-edits that a variant consists of, without the refused ones that others replaced."""
        count, variant = self.config.comparison.edits, next(v for v in self.scored if v.name == name)
        return tuple(candidate.edit for candidate in variant.candidates if candidate.edit.index < count)

    def _best_prompt(self, variant: Variant, source: sources.BestPrompt, stage: Stage) -> VariantScores | None:
        """Return the untrained teacher with the prompt that is best on the development documents."""
        tried: list[tuple[str, float | None]] = []
        as_written = variant.model_copy(update={"equal_tokens": False})
        for place, prompt in enumerate(source.prompts):
            what, steps = f"{stage.name}, {prompt_template(prompt).name}", stage.steps[2 * place : 2 * place + 2]
            write = partial(self.loop.sample, None, prompt)
            scores = self._taught(as_written, write, self.split.development, what, steps)
            tried += [(prompt, accuracy) for accuracy in scores.accuracy.values()]
        means = _means(source.prompts, tried)
        if means:
            self.best_prompt = max(means, key=means.__getitem__)
            best = prompt_template(self.best_prompt).name.removeprefix("micro-")
            variant = variant.model_copy(update={"label": f"{variant.label} ({best})"})
        elif source.prompts or not self.best_prompt:
            return None
        write = partial(self.loop.sample, None, self.best_prompt)
        chosen = self._taught(variant, write, self.split.test, stage.name, stage.steps[-2:])
        notes = {f"development accuracy of {prompt_template(prompt).name}": mean for prompt, mean in means.items()}
        return chosen.model_copy(update={"notes": {**chosen.notes, **notes}})

    def _taught(
        self,
        variant: Variant,
        write: Writer,
        tasks: Sequence[KnowledgeTask],
        what: str,
        steps: Sequence[Step],
        *,
        keep: int = 0,
    ) -> VariantScores:
        """Return the student updated with the self-edits that a model writes."""
        settings, loop = self.config.comparison, self.loop
        external, equal = isinstance(variant.source, sources.ExternalGenerator), variant.equal_tokens
        with loop.reporter.step(steps[0], what):
            seed = loop.seed("sample", "equal tokens" if equal else "external" if external else "comparison")
            sampling = write(tasks, n=written(self.config, variant), seed=seed)
        for step in steps[1:-1]:
            with loop.reporter.step(step, what):
                sampling = only_missed(loop, sampling, self.count_tokens())
        with loop.reporter.step(steps[-1], what):
            if equal:
                edits = self._at_equal_tokens(sampling.edits, pooled(variant.source))
                sampling = sampling.model_copy(update={"edits": edits})
            elif settings.drafts > 1 and not external:
                sampling = self_edits.most_written(sampling, settings.tried)
            return self.score_edits(variant, sampling, tasks, keep=keep)

    def score_edits(
        self, variant: Variant, edits: Iterable[Edit] | Sampling, tasks: Sequence[KnowledgeTask], *, keep: int = 0
    ) -> VariantScores:
        """Return the scores of a variant with the given self-edits on the held-out questions of their tasks.

        Of the first `keep` documents the adapter of the first self-edit is kept (`kept_adapters`).
        """
        sampling = edits if isinstance(edits, Sampling) else Sampling(edits=tuple(edits))
        candidates, redrawn = self._update(sampling, variant.objective, keep)
        updates = [update for candidate in candidates for update in candidate.replicates]
        drawn = [candidate.edit for candidate in candidates]
        refused = Counter(c.reason.value for c in candidates if c.reason is not None and not c.replicates)
        too_long = {"prompt_too_long": len(sampling.too_long)} if sampling.too_long else {}
        scores = self._scores(variant, updates, tasks)
        return scores.model_copy(
            update={
                "candidates": tuple(candidates),
                "forgetting": _means((task.id for task in tasks), [(u.document_id, u.forgetting) for u in updates]),
                "failures": {**scores.failures, **refused, **too_long},
                "edit_tokens": known_mean(edit.tokens for edit in drawn if edit.tokens),
                "training_tokens": known_mean(update.tokens for update in updates if update.failure is None),
                "seconds": scores.seconds + sampling.seconds,
                "notes": self.diagnostics.of(drawn) | ({"redrawn": float(redrawn)} if redrawn else {}),
            }
        )

    def _scores(
        self, variant: Variant, updates: Sequence[ScoredUpdate], tasks: Sequence[KnowledgeTask]
    ) -> VariantScores:
        """Return what the scores of some students show, whatever they were updated with."""
        scored = [update for update in updates if update.failure is None]
        failures = Counter(update.failure.value for update in updates if update.failure is not None)
        for update in updates:
            failures.update({f"answers {reason}": count for reason, count in update.ungraded.items()})
        answers = [
            (question.phrasing, right)
            for update in scored
            for question, right in zip(
                questions_of(self.loop.tasks[update.document_id], "comparison"), update.verdicts, strict=True
            )
            if question.phrasing
        ]
        gold = [(u.document_id, u.mean_token_probability) for u in updates]
        accuracy = _means((task.id for task in tasks), [(u.document_id, u.accuracy) for u in updates])
        return VariantScores(
            name=variant.name,
            label=variant.label,
            accuracy=accuracy,
            answers=tuple(each for update in scored for each in self._answered(update)),
            seconds=sum(update.seconds for update in updates),
            verdicts={u.document_id: u.verdicts for u in scored if u.index == 0},
            # An update that is made again to keep its adapter, in another bank, may differ in the last bits.
            token_probability={name: round(mean, 4) for name, mean in _means(accuracy, gold).items()},
            grades=self._grades(scored),
            phrasings=_means(sorted({phrasing for phrasing, _ in answers}), answers),
            failures=dict(failures),
        )

    def _answered(self, update: ScoredUpdate) -> Iterable[Answered]:
        """Yield each question of the comparison with its answer after an update."""
        asked, texts = questions_of(self.loop.tasks[update.document_id], "comparison"), update.answers
        if not texts:
            said = zip(update.said, update.exact, strict=True)
            texts = tuple(text if right else f"{text} ..." for text, right in said)
        for question, answer, right in zip(asked, texts, update.verdicts, strict=True):
            gold = {"question": question.question, "gold": question.answer}
            yield Answered(document=update.document_id, edit=update.index, answer=answer, right=right, **gold)

    def parameters(self, scores: VariantScores) -> dict[str, str]:
        """Return what tells a variant from others, and its run from those of other seeds and recipes."""
        config, variant = self.config, self._variant(scores)
        source, recipe = variant.source, config.student.update
        if variant.objective is not None:
            recipe = recipe.model_copy(update={"objective": variant.objective})
        prompts: dict[Any, tuple[str, ...]]
        prompts = {sources.TeacherSource: (config.teacher.prompt,), sources.BestPrompt: (self.best_prompt,)}
        own = getattr(source, "prompts", None) or filter(None, (getattr(source, "prompt", None),))
        prompt = ", ".join(prompt_template(each).name for each in prompts.get(type(source), own))
        return {
            "variant": variant.name,
            "source": source.type,
            **({"prompt": prompt} if prompt else {}),
            "seed": str(config.seed),
            "student": config.student.model,
            "teacher": config.teacher.model,
            "edits": str(config.comparison.edits),
            "tokens": "as the trained teacher's" if variant.equal_tokens else "as written",
            "recipe": recipe.model_dump_json(exclude_defaults=True),
        }

    def state_of(self, scores: VariantScores) -> str | None:
        """Return the state of the teacher that wrote a variant's self-edits; None where none that learned did."""
        source = self._variant(scores).source
        return self.states.get(source.state) if isinstance(source, sources.TeacherSource) else None

    def _variant(self, scores: VariantScores) -> Variant:
        return next(variant for variant in self.config.listed if variant.name == scores.name)

    def _grades(self, scored: Sequence[ScoredUpdate]) -> dict[str, tuple[bool | None, ...]]:
        """Return the verdicts of all graders on the students' texts, the configured one first; none without texts."""
        grading = self.config.grading_for("comparison")
        if grading is None or isinstance(grading.grader, DomainGrading):
            return {}
        configured = {grading.grader.type: tuple(right for update in scored for right in update.correct)}
        return configured | rule_verdicts(grade_items(scored, self.loop.tasks, "comparison"), grading.grader)

    def _update(self, sampling: Sampling, objective: Objective | None, keep: int) -> tuple[list[Candidate], int]:
        """Return the first self-edits of each document with their scores, others in place of refused ones.

        A refused one changes places with the document's next, so that indices below `comparison.edits` are those that
        the variant consists of. The number of replacements is returned beside them.
        """
        count = self.config.comparison.edits
        kept = [edit.id for edit in sampling.edits if edit.index == 0][:keep]
        plain = self.config.teacher.reward.model_copy(update={"retention_weight": 0.0, "metric": "probability"})
        waiting = by_document(edit for edit in sampling.edits if edit.index >= count)
        todo = [edit for edit in sampling.edits if edit.index < count]
        found: dict[str, Candidate] = {}
        redrawn = 0
        while todo:
            updates = self.loop.update(
                self.loop.trials(todo, "comparison", keep=kept, objective=objective), "comparison"
            )
            judged, todo = judge(todo, plain, updates=updates), []
            for candidate in judged:
                others = waiting.get(candidate.document_id)
                if candidate.reason in REFUSALS and others:
                    spare = others.pop(0)
                    todo.append(spare.model_copy(update={"index": candidate.edit.index}))
                    candidate = _at(candidate, spare.index)
                found[candidate.edit.id] = candidate
            redrawn += len(todo)
        places = {name: place for place, name in enumerate(dict.fromkeys(edit.document_id for edit in sampling.edits))}
        return sorted(found.values(), key=lambda c: (places[c.document_id], c.edit.index)), redrawn

    def kept_adapters(self, variant: VariantScores) -> dict[str, Path]:
        """Return the directories of the adapters that were kept of a variant's first documents, by document id."""
        chosen = [c for c in variant.candidates if c.edit.index == 0][: self.config.comparison.keep_adapters]
        digests = {c.document_id: u.adapter_digest for c in chosen for u in c.replicates}
        places = {name: self.loop.adapter_dir(digest) for name, digest in digests.items() if digest is not None}
        return {name: place for name, place in places.items() if place.is_dir()}


def _at(candidate: Candidate, index: int) -> Candidate:
    """Return a candidate under another index."""
    edit = candidate.edit.model_copy(update={"index": index})
    updates = tuple(update.model_copy(update={"index": index}) for update in candidate.replicates)
    return candidate.model_copy(update={"edit": edit, "replicates": updates})


def _means(names: Iterable[str], values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Return the mean of the known values by name, such as a document's id, in the order of the names."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for name, value in values:
        found[name].append(value)
    return known_means({name: found[name] for name in names})


# Specifications: every one of a space, tried on some tasks

_TIE = 1e-3
"""Weight of the gold outputs' probability beside exact match: it orders specifications that solve equally many."""

Table = Mapping[str, Sequence[float | None]]
"""By task id, the score of each specification in the order of the space, None where it has none."""


def specification(task_id: str, place: int, choice: Mapping[str, Any]) -> Edit:
    """Return a specification as a self-edit for a task."""
    return Edit.written(task_id, edit_of(choice), json.dumps(choice), index=place)


def try_all(loop: Loop, tasks: Sequence[KnowledgeTask], choices: Sequence[Mapping[str, Any]], purpose: str) -> Table:
    """Return the student's score on the rewarded tests of each task after each specification.

    The purpose is part of the seeds.
    """
    edits = [specification(task.id, place, choice) for task in tasks for place, choice in enumerate(choices)]
    updates = loop.update(loop.trials(edits, purpose), "rewards")
    found = {(update.document_id, update.index): _with_tie(update) for update in updates}
    return {task.id: [found[task.id, place] for place in range(len(choices))] for task in tasks}


def _with_tie(update: ScoredUpdate) -> float | None:
    exact, probability = update.accuracy, update.mean_token_probability
    return None if exact is None or probability is None else exact + _TIE * probability


def best_of(table: Table, choices: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], SpecSearch]:
    """Return the specification with the best mean over the tasks of a table, and the record of the search.

    One without a score on some task, such as one over the step budget, has no mean and cannot be the best.

    Raises:
        ValueError: None has a score on every task.
    """
    by_spec = list(zip(*table.values(), strict=True))
    means = [None if any(score is None for score in scores) else known_mean(scores) for scores in by_spec]
    known = [place for place, mean in enumerate(means) if mean is not None]
    if not known:
        raise ValueError("no specification has a score on every task")
    best = max(known, key=lambda place: means[place] or 0.0)
    scores = {json.dumps(choice): mean for choice, mean in zip(choices, means, strict=True)}
    return choices[best], SpecSearch(tasks=len(table), fixed=json.dumps(choices[best]), scores=scores)
