"""What was to be shown, beside what was measured: every verdict follows from the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from evaluation.statistics import known_mean
from pipelines.evidence import over_seeds
from pipelines.evidence.cells import UNKNOWN, difference, plain, points, reading, share, table
from pipelines.evidence.learning_tables import of_three
from pipelines.evidence.over_seeds import OverSeeds, Results
from pipelines.evidence.tables import phrasing_gains, phrasings
from pipelines.records import ReliabilityRecord

Verdict = Literal["met", "NOT met", "not measured"]

GAIN = 0.20
"""Wanted of trained less untrained, in accuracy."""

DOCUMENTS = 100
"""Wanted of test documents a seed."""

KEPT = 0.70
"""Wanted share of the gain on the other student."""

RELIABILITY = 0.80
"""Wanted of a reward."""

RUNS = 3
"""Updates that a reward may take for it, at most."""

_ROUNDING = 1e-9

_WANTED = f"{100 * GAIN:.0f}"


class Claim(NamedTuple):
    """One thing that was to be shown."""

    what: str
    wanted: str
    measured: str
    verdict: Verdict
    remark: str = ""
    """What a reader must know beside the verdict."""


def claims(results: Results, metric: str) -> list[Claim]:
    """Return everything that was to be shown.

    Args:
        results: By seed, at least one.
        metric: Of the rewards: `accuracy`, `probability` or `proxy`.
    """
    return [
        _gain(results),
        _unseen_templates(results),
        _equal_tokens(results),
        _kept(results),
        _reliability("before learning", [result.pilot.get(metric) for result in results.values()]),
        _reliability("in the last rounds", [result.reliability for result in results.values()]),
        _retention(results),
        _other_document(results),
    ]


def _gain(results: Results) -> Claim:
    what, wanted = "trained − untrained teacher", f"≥ {_WANTED} points, intervals above 0, ≥ {DOCUMENTS} documents"
    found, documents = over_seeds.gain(results, "trained_minus_untrained"), min(r.documents for r in results.values())
    if found is None:
        return _unmeasured(what, wanted)
    above = found.bootstrap.low > 0.0 and (found.effects is None or found.effects.low > 0.0)
    met = above and _at_least(found.bootstrap.mean, GAIN) and documents >= DOCUMENTS
    remark = "" if documents >= DOCUMENTS else f"{documents} documents are too few"
    return Claim(what, wanted, f"{_both(found)}; {documents} documents a seed", _verdict(met), remark)


def _unseen_templates(results: Results) -> Claim:
    what, wanted = "the same in each question template that rewards never used", f"≥ {_WANTED} points in each"
    means = {wording: known_mean(phrasing_gains(results, wording)) for wording in phrasings(results)}
    known = {wording: mean for wording, mean in means.items() if mean is not None}
    if not known:
        return _unmeasured(what, wanted)
    told = ", ".join(f"{wording} {points(mean)}" for wording, mean in known.items())
    return Claim(what, wanted, told, _verdict(all(_at_least(mean, GAIN) for mean in known.values())))


def _equal_tokens(results: Results) -> Claim:
    what, wanted = "trained teacher − best fixed kind at equal tokens", "≥ 0, shown by the interval"
    found = over_seeds.gain(results, "trained_minus_fixed_kind_equal_tokens")
    if found is None:
        return _unmeasured(what, wanted)
    noise = "within noise" if reading(found.bootstrap) == "within noise" else ""
    return Claim(what, wanted, _both(found), _verdict(found.bootstrap.low >= 0.0), noise)


def _kept(results: Results) -> Claim:
    what, wanted = "share of the gain that another student keeps", f"≥ {100 * KEPT:.0f} %, interval above 0"
    found = over_seeds.kept(results)
    if found is None:
        return _unmeasured(what, wanted)
    met = _at_least(found.mean, KEPT) and found.low > 0.0
    remark = f"the interval reaches below {100 * KEPT:.0f} %" if met and found.low < KEPT else ""
    return Claim(what, wanted, f"{share(found)} %", _verdict(met), remark)


def _reliability(when: str, records: Sequence[ReliabilityRecord | None]) -> Claim:
    what, wanted = f"reliability of a reward {when}", f"≥ {RELIABILITY} from ≤ {RUNS} updates, in each seed"
    known = [record for record in records if record is not None]
    if not known or len(known) < len(records):
        return _unmeasured(what, wanted)
    met = all(_at_least(r.of_reward, RELIABILITY) and r.runs <= RUNS + _ROUNDING for r in known)
    told = ", ".join(f"{plain(record.of_reward)} from {plain(record.runs)}" for record in known)
    three = ", ".join(plain(of_three(record)) for record in known)
    return Claim(what, wanted, told, _verdict(met), "" if met else f"from {RUNS} updates: {three}")


def _retention(results: Results) -> Claim:
    what = "retention with the trained teacher, not worse than with the untrained one"
    wanted = "probes lost, trained − untrained: not shown to be above 0"
    found = over_seeds.forgetting_gain(results)
    if found is None:
        return _unmeasured(what, wanted)
    verdict = reading(found.bootstrap)
    remark = f"within noise; up to {points(found.bootstrap.high)} points more may be lost"
    return Claim(
        what, wanted, _both(found), _verdict(verdict != "above 0"), remark if verdict == "within noise" else ""
    )


def _other_document(results: Results) -> Claim:
    what, wanted = "a self-edit for another document − base", "0 within noise"
    found = over_seeds.gain(results, "other_document_minus_base")
    if found is None:
        return _unmeasured(what, wanted)
    verdict = reading(found.bootstrap)
    return Claim(
        what, wanted, _both(found), _verdict(verdict == "within noise"), "" if verdict == "within noise" else verdict
    )


def _both(found: OverSeeds) -> str:
    effects = "" if found.effects is None else f"; random effects {difference(found.effects)}"
    return f"{difference(found.bootstrap)}{effects}"


def _at_least(value: float, wanted: float) -> bool:
    return value >= wanted - _ROUNDING


def _verdict(met: bool) -> Verdict:
    return "met" if met else "NOT met"


def _unmeasured(what: str, wanted: str) -> Claim:
    return Claim(what, wanted, UNKNOWN, "not measured")


def claims_table(found: Sequence[Claim]) -> str:
    """Return the claims as a table, and below it what was not met."""
    rows = [[c.what, c.wanted, c.measured, f"**{c.verdict}**" + (f" ({c.remark})" if c.remark else "")] for c in found]
    return table(["claim", "wanted", "measured", "verdict"], rows, texts=4) + "\n\n" + negative_results(found)


def negative_results(found: Sequence[Claim]) -> str:
    """Return a list of what was not met or not measured, or that there is nothing of the kind."""
    lines = [
        f"- {c.what}: wanted {c.wanted}; measured {c.measured}" + (f"; {c.remark}" if c.remark else "") + "."
        for c in found
        if c.verdict == "NOT met"
    ]
    lines += [f"- {c.what}: not measured." for c in found if c.verdict == "not measured"]
    if not lines:
        return "Nothing that was to be shown is missing."
    return "Negative results:\n\n" + "\n".join(lines)
