"""What each setting is worth: arms beside their reference, on the same documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from evaluation.statistics import Interval, known_mean
from pipelines.evidence import over_seeds
from pipelines.evidence.cells import UNKNOWN, difference, p_value, plain, reading, share, table
from pipelines.evidence.over_seeds import LEARNED, Results

_FEWER = 0.02
"""Share by which the updates of an arm differ from the reference's before a sentence tells of it."""


class ArmReading(NamedTuple):
    """An arm less its reference: accuracy with the trained teacher, by document."""

    name: str
    interval: Interval
    """Over seeds and documents, in [-1, 1]."""
    p: float
    """Two-sided p-value of the sign-flip test over the documents of all seeds."""
    adjusted: float
    """The same, corrected for the arms of the table (Holm 1979)."""
    runs: float
    """Its updates of students as a share of the reference's; 1 where neither is known."""


def compare_arms(reference: Results, arms: Mapping[str, Results]) -> dict[str, ArmReading]:
    """Return how each arm differs from the reference, over the seeds and documents that both have.

    Arms without a seed or document in common with the reference are missing.

    Args:
        reference: By seed.
        arms: By name of the arm.
    """
    from evaluation.paired_tests import adjusted, sign_flip_test

    found: dict[str, tuple[Interval, float, float]] = {}
    for name, results in arms.items():
        groups = [_differences(results, reference, seed) for seed in sorted(set(results) & set(reference))]
        interval = over_seeds.pooled(groups)
        if interval is not None:
            values = [value for group in groups for value in group]
            found[name] = (interval, sign_flip_test(values), _runs(results, reference))
    corrected = adjusted({name: p for name, (_, p, _) in found.items()}, "holm")
    return {name: ArmReading(name, i, p, corrected[name], runs) for name, (i, p, runs) in found.items()}


def _differences(arm: Results, reference: Results, seed: int) -> list[float]:
    trained = LEARNED[0]
    scores = {name: results[seed].document_accuracy.get(trained, {}) for name, results in _named(arm, reference)}
    return over_seeds.paired(scores, "arm", "reference")


def _named(arm: Results, reference: Results) -> tuple[tuple[str, Results], tuple[str, Results]]:
    return ("arm", arm), ("reference", reference)


def _runs(arm: Results, reference: Results) -> float:
    seeds = set(arm) & set(reference)
    mine, others = (sum(results[seed].inner_runs for seed in seeds) for results in (arm, reference))
    return mine / others if others else 1.0


def arms_table(label: str, reference: Results, arms: Mapping[str, Results], compared: Mapping[str, ArmReading]) -> str:
    """Return the reference and each arm: accuracy, gain, retention, difference from the reference, updates, minutes.

    Args:
        label: Of the reference.
        reference: By seed, at least one.
        arms: By name.
        compared: See `compare_arms`.
    """
    rows = []
    for name, results in {label: reference, **arms}.items():
        gain, arm = over_seeds.gain(results, "trained_minus_untrained"), compared.get(name)
        rows.append(
            [
                name,
                share(over_seeds.accuracy(results, LEARNED[0])),
                difference(None if gain is None else gain.bootstrap),
                difference(over_seeds.forgetting(results, LEARNED[0])),
                UNKNOWN if arm is None else difference(arm.interval),
                UNKNOWN if arm is None else p_value(arm.adjusted),
                UNKNOWN if arm is None else reading(arm.interval),
                plain(known_mean(result.inner_runs for result in results.values()), 0),
                plain(known_mean(sum(result.seconds.values()) / 60 for result in results.values()), 1),
            ]
        )
    heads = ["", "trained, %", "trained − untrained, points", "probes lost by trained, points"]
    return table([*heads, f"less *{label}*, points", "p, adjusted", "reading", "updates", "minutes"], rows)


def arms_sentences(label: str, arms: Mapping[str, Results], compared: Mapping[str, ArmReading]) -> str:
    """Return in plain words which arms are better, which are worse and which differ by no more than noise.

    Args:
        label: Of the reference.
        arms: By name.
        compared: See `compare_arms`.
    """
    heads = {
        "above 0": f"Better than *{label}* (the interval is above 0)",
        "below 0": f"Worse than *{label}* (the interval is below 0)",
        "within noise": "No difference shown (the interval contains 0)",
    }
    lines = []
    for verdict, head in heads.items():
        told = [_told(arm) for arm in compared.values() if reading(arm.interval) == verdict]
        lines.append(f"- {head}: {'; '.join(told) or 'none'}.")
    if missing := [name for name in arms if name not in compared]:
        lines.append(f"- Not compared, for want of a common document: {', '.join(missing)}.")
    return "\n".join(lines)


def _told(arm: ArmReading) -> str:
    unequal = f", with {100 * arm.runs:.0f} % of the updates" if abs(arm.runs - 1.0) > _FEWER else ""
    # The interval does not know of the other arms; the p-value does.
    doubt = f", but adjusted p {p_value(arm.adjusted)}" if reading(arm.interval) != "within noise" else ""
    return f"{arm.name} {difference(arm.interval)}{unequal}{doubt if arm.adjusted >= 0.05 else ''}"


def arms_caution(reference_seeds: Sequence[int], seeds: Results) -> str:
    """Return how far differences between arms may be those of learning twice, see `ArmsPlan.seeds`.

    Args:
        reference_seeds: Seeds of the arms.
        seeds: All results of the plan's seeds, which tell how much seeds differ.
    """
    found = over_seeds.gain(seeds, "trained_minus_untrained") if len(seeds) > 1 else None
    spread = "" if found is None or found.effects is None else _spread(100 * found.effects.between_sd)
    if len(reference_seeds) > 1:
        return f"Arms were run with the seeds {', '.join(map(str, reference_seeds))}.{spread}"
    return (
        "Each arm was run once: its interval is over documents and leaves out that the same settings, learned again "
        f"from another seed, end elsewhere.{spread}"
    )


def _spread(points: float) -> str:
    return (
        f" Trained − untrained varies between seeds with an estimated standard deviation of {points:.1f} points beyond "
        "what their documents explain."
    )
