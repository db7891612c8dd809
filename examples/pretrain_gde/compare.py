"""What runs come to: in words, summed up over seeds, and all variants in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.pretrain_gde.evaluate import caution, result_of, worth
from examples.pretrain_gde.metrics import summary
from examples.pretrain_gde.shortcuts import in_words, strongest
from examples.pretrain_gde.storage import write_json, write_text

COLUMNS = {
    "scored": "AUC",
    "trained_gaussian": "AUC, single Gaussian",
    "trained_kde": "AUC, kernel density",
    "untrained": "AUC, untrained",
    "shortcut": "AUC, strongest shortcut",
    "scored_adjusted": "adjusted for it",
    "untrained_adjusted": "untrained, adjusted for it",
}
SUMMED_UP = {"scored": "", "untrained": "untrained"}  # by whose score, as of `result_of`


def describe_result(metrics: dict[str, Any]) -> str:
    """Say in a line how a run went, and in another what the figure is worth."""
    network, score, epoch = (metrics["scored"][name] for name in ("network", "score", "epoch"))
    if metrics["test"] is None:
        told = f"AUC {metrics['validation'][network][score]:.3f} on validation"
        if metrics["validated_by"] == "pasted":
            told += ", between normals and themselves with something pasted in"
        told += "; nothing tested"
    else:
        test = result_of(metrics)
        low, high = test["auc_interval"]
        told = (
            f"test AUC {test['auc']:.3f} (95 % {low:.3f}-{high:.3f}), AP {test['ap']:.3f}, "
            f"untrained {result_of(metrics, 'untrained')['auc']:.3f}"
        )
    of_epoch = f" of epoch {epoch}" if epoch else ""
    return (
        f"{told}; {network} {score}{of_epoch}; {metrics['seconds'] / 60:.1f} min of training\n"
        f"{worth(metrics)} {caution(metrics)}"
    ).strip()


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean and standard deviation of the test AUCs and APs over seeds."""
    columns: dict[str, list[Any]] = {}
    shortcuts = [strongest(metrics["shortcuts"]) for metrics in results]
    if all(metrics["test"] for metrics in results):
        for name, which in SUMMED_UP.items():
            columns[name] = [result_of(metrics, which)["auc"] for metrics in results]
            columns[f"{name}_adjusted"] = [
                result_of(metrics, which)["adjusted"][found[0]]["auc"] if found else None
                for metrics, found in zip(results, shortcuts, strict=True)
            ]
        columns["shortcut"] = [found[1]["auc"] if found else None for found in shortcuts]
        for network, scores in results[0]["test"].items():
            for name in scores:
                measured = [metrics["test"][network][name] for metrics in results]
                columns[f"{network}_{name}"] = [result["auc"] for result in measured]
                columns[f"{network}_{name}_ap"] = [result["ap"] for result in measured]
    return {
        "seeds": [metrics["settings"]["seed"] for metrics in results],
        "minutes": [metrics["seconds"] / 60 for metrics in results],
        "shortcuts": [found and found[0] for found in shortcuts],
        "columns": {name: summary(values) for name, values in columns.items()},
    }


def write_table(summaries: dict[str, dict[str, Any]], out: Path) -> str:
    """Write the summaries of several variants, and a Markdown table of them; return the table.

    The best comes first.
    """
    lines = [
        f"| variant | {' | '.join(COLUMNS.values())} | which it is | seeds | minutes a seed |",
        "| --- " * (len(COLUMNS) + 4) + "|",
    ]
    for variant, found in sorted(summaries.items(), key=_order):
        cells = [mean_and_sd(found["columns"].get(name)) for name in COLUMNS]
        named = dict.fromkeys(in_words(name) for name in found["shortcuts"] if name)
        cells.append(", ".join(named) or "-")
        seeds = ", ".join(map(str, found["seeds"]))
        minutes = sum(found["minutes"]) / len(found["minutes"])
        lines.append(f"| {variant} | {' | '.join(cells)} | {seeds} | {minutes:.1f} |")
    table = "\n".join(lines) + "\n"
    write_json(out / "compare.json", summaries)
    write_text(out / "compare.md", table)
    return table


def _order(pair: tuple[str, dict[str, Any]]) -> float:
    return -pair[1]["columns"]["scored"]["mean"] if pair[1]["columns"] else 0.0


def mean_and_sd(figures: dict[str, Any] | None) -> str:
    """Put a `summary` in words: mean ± deviation, or a dash for none."""
    if figures is None:
        return "-"
    spread = "" if figures["sd"] is None else f" ± {figures['sd']:.3f}"
    return f"{figures['mean']:.3f}{spread}"
