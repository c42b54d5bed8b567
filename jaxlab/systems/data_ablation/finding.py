"""What a data ablation found, in a paragraph: the answer, how sure, and its catch."""

import math
from collections.abc import Mapping, Sequence

from jaxlab.systems.data_ablation import experts
from jaxlab.systems.data_ablation.study import Outcome

_NAMED = 4  # targets; the others stand in the rankings


def finding(outcome: Outcome, agreement: Mapping[str, Mapping]) -> str:
    """The paragraph.

    Args:
        outcome: of the study.
        agreement: of every proxy, as `results.numbers` has it.
    """
    return f"{_best(outcome)} {_check(outcome, agreement)}"


def _best(outcome: Outcome) -> str:
    """The mixture that is predicted best for each of the first targets."""
    words = []
    for target, ranking in outcome.ranking.items():
        row = next((row for row in ranking if len(row.mixture) > 1), None)
        if row is None:
            continue
        low, high = row.perplexity_interval
        interval = ""
        if math.isfinite(low):
            interval = f", 95 % interval {low:.2f} to {high:.2f}"
        words.append(
            f"{experts.name_of(row.mixture)} for {target} (perplexity "
            f"{row.predicted_perplexity:.2f}{interval})"
        )
    if not words:
        return "There is one partition, so there is nothing to mix."
    others = len(words) - _NAMED
    more = f"; {others} more target{'s'[: others - 1]} below" if others > 0 else ""
    return f"Predicted best of two or more domains: {'; '.join(words[:_NAMED])}{more}."


def _check(outcome: Outcome, agreement) -> str:
    """Whether training agreed, beside the prediction that merges nothing."""
    if not outcome.comparisons:
        return (
            "No mixture was trained to check this: it is a prediction alone "
            "(jaxlab ablate report POOL --trained N trains some)."
        )
    trained = f"{len(outcome.comparisons)} mixtures were trained to check it"
    merged, trivial = (_overall(agreement[x]) for x in ("merged", "mean_of_individual"))
    if merged is None or trivial is None:
        return f"{trained}, too few for an agreement with an interval."
    gap = "and more closely than that prediction"
    if merged["value"] <= trivial["value"]:
        gap = "not more closely than that prediction, so merging has shown nothing here"
    elif merged["low"] is None or merged["low"] <= trivial["value"]:
        gap = "but by no more than chance allows, so merging may have added nothing"
    return (
        f"{trained}: their losses agree with the merged models' by a Pearson "
        f"correlation of {_words(merged)}, with the mean of the members' own losses, "
        f"which needs no merging, by {_words(trivial)}; {gap}."
    )


def _overall(rows: Mapping[str, Sequence[Mapping]]) -> Mapping | None:
    """Pearson over all mixtures, the mean of the targets, if it is defined."""
    for row in (*rows["units"], *rows["others"]):
        if row["domain"] == "all" and row["size"] is None:
            return None if row["pearson"]["value"] is None else row["pearson"]
    return None


def _words(estimate: Mapping) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.2f}"
    return (
        f"{estimate['value']:.2f} (95 % interval {estimate['low']:.2f} to "
        f"{estimate['high']:.2f})"
    )
