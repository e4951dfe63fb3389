"""Tables of the comparison: variants, differences, equal tokens, phrasings, retention."""

from __future__ import annotations

from evaluation.statistics import SMALL_GROUPS, known_mean
from pipelines.evidence import over_seeds
from pipelines.evidence.cells import (
    UNKNOWN,
    difference,
    folded,
    gain_name,
    in_order,
    p_value,
    percent,
    plain,
    points,
    reading,
    share,
    table,
    variant,
)
from pipelines.evidence.over_seeds import LEARNED, Results


def variants_table(results: Results) -> str:
    """Return the accuracy of each variant, a column a seed and one over all, and the tokens of its self-edits.

    Intervals of a seed are over its documents, those over all are over seeds and documents.

    Args:
        results: By seed, at least one.
    """
    names = in_order({name for result in results.values() for name in result.variants})
    rows = []
    for name in names:
        cells = [share(result.variants.get(name)) for result in results.values()]
        tokens = known_mean(result.edit_tokens.get(name) for result in results.values())
        rows.append([variant(name), *cells, f"**{share(over_seeds.accuracy(results, name))}**", plain(tokens, 0)])
    return table(["accuracy, %", *(f"seed {seed}" for seed in results), "all seeds", "tokens"], rows)


def gains_table(results: Results) -> str:
    """Return the differences over all seeds by two methods, and below them, folded, those of each seed with tests."""
    keys = list(dict.fromkeys(key for result in results.values() for key in result.gains))
    rows = []
    for key in keys:
        found = over_seeds.gain(results, key)
        effects = None if found is None else found.effects
        between = None if effects is None or len(results) < 2 else effects.between_sd
        interval = None if found is None else found.bootstrap
        cells = [difference(interval), reading(interval), difference(effects), percent(between)]
        rows.append([gain_name(key), *cells])
    heads = ["difference, points", "bootstrap", "reading", "random effects", "SD between seeds"]
    return table(heads, rows) + "\n\n" + folded("Each seed, with tests", _gains_by_seed(results, keys))


def _gains_by_seed(results: Results, keys: list[str]) -> str:
    rows = []
    for key in keys:
        for seed, result in results.items():
            found = result.gains.get(key)
            if found is None:
                continue
            test = result.tests.get(key)
            needed = None if test is None else test.required_documents
            rows.append(
                [
                    gain_name(key),
                    str(seed),
                    difference(found),
                    p_value(None if test is None else test.sign_flip),
                    p_value(None if test is None else test.adjusted),
                    percent(result.minimum_detectable.get(key)),
                    UNKNOWN if needed is None else f"{needed:,}",
                ]
            )
    return table(["difference, points", "seed", "mean", "p", "p, adjusted", "detectable", "documents needed"], rows)


def few_seeds(seeds: int) -> str:
    """Return a sentence on how far to trust intervals over this many seeds; empty where there are enough."""
    if seeds >= SMALL_GROUPS:
        return ""
    if seeds == 1:
        return "With one seed the intervals over all tell nothing of how another seed may turn out."
    return (
        f"Bootstrap intervals over {seeds} seeds are too narrow, because so few show little of how seeds differ: 95 % "
        "intervals over 3 seeds held the true mean in 79 to 93 % of simulations. Those by random effects are not."
    )


def budgets_table(results: Results) -> str:
    """Return accuracy at equal lengths of self-edits, and the trained teacher less the others; empty for no curve."""
    curves = over_seeds.budgets(results)
    names = in_order({name for found in curves.values() for name in found})
    trained = LEARNED[0]
    rivals = [name for name in names if name != trained and any(trained in f and name in f for f in curves.values())]
    rows = []
    for budget, found in curves.items():
        cells = [
            f"{share(found[name].accuracy)} ({found[name].tokens:.0f})" if name in found else UNKNOWN for name in names
        ]
        for name in rivals:
            both = trained in found and name in found
            cells.append(difference(over_seeds.budget_gain(found[trained], found[name])) if both else UNKNOWN)
        rows.append([str(budget), *cells])
    heads = ["tokens allowed", *map(variant, names), *(f"trained − {variant(name)}" for name in rivals)]
    return table(heads, rows) if rows else ""


def phrasings_table(results: Results) -> str:
    """Return the accuracy by phrasing of the questions, means over seeds; empty where questions have none."""
    names = in_order({name for result in results.values() for name in result.phrasings})
    wordings = phrasings(results)
    if not wordings:
        return ""

    def mean(name: str, wording: str) -> float | None:
        return known_mean(result.phrasings.get(name, {}).get(wording) for result in results.values())

    rows = [[variant(name), *(percent(mean(name, wording)) for wording in wordings)] for name in names]
    gains = [phrasing_gains(results, wording) for wording in wordings]
    rows.append(["trained − untrained, points", *(points(known_mean(values)) for values in gains)])
    return table(["accuracy, %", *wordings], rows)


def phrasings(results: Results) -> list[str]:
    """Return the phrasings of the questions, sorted."""
    found = (result.phrasings.values() for result in results.values())
    return sorted({wording for variants in found for means in variants for wording in means})


def phrasing_gains(results: Results, wording: str) -> list[float]:
    """Return trained less untrained in one phrasing by seed; seeds without it are missing."""
    found = []
    for result in results.values():
        left, right = (result.phrasings.get(name, {}).get(wording) for name in LEARNED)
        if left is not None and right is not None:
            found.append(left - right)
    return found


def retention_table(results: Results) -> str:
    """Return the share of retention probes lost by variant, and the trained teacher's less the untrained one's."""
    names = in_order({name for result in results.values() for name in result.forgetting})
    if not names:
        return ""
    rows = []
    for name in names:
        cells = [difference(result.forgetting.get(name)) for result in results.values()]
        price = over_seeds.lost_per_learned(results, name)
        paid = UNKNOWN if price is None else f"{price.mean:.2f} [{price.low:.2f}, {price.high:.2f}]"
        rows.append([variant(name), *cells, difference(over_seeds.forgetting(results, name)), paid])
    alone = [over_seeds.forgetting_gain({seed: result}) for seed, result in results.items()]
    cells = [difference(None if found is None else found.bootstrap) for found in alone]
    found = over_seeds.forgetting_gain(results)
    rows.append(["trained − untrained", *cells, difference(None if found is None else found.bootstrap), UNKNOWN])
    seeds = [f"seed {seed}" for seed in results]
    return table(["probes lost, points", *seeds, "all seeds", "lost for each point learned"], rows)
