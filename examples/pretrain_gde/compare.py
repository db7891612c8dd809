"""All variants under the same budget and seeds, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.pretrain_gde.run import Source, check_runs, run_seeds, summarize
from examples.pretrain_gde.runtime import Runtime
from examples.pretrain_gde.settings import Settings
from examples.pretrain_gde.shortcuts import in_words
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


def compare(
    settings: Settings,
    variants: Sequence[str],
    seeds: Sequence[int],
    source: Source,
    out: Path,
    runtime: Runtime,
    *,
    resume: bool = False,
) -> str:
    """Run every variant with every seed; give, and write, a table in Markdown.

    Runs that are finished already are taken as they are with `resume`.
    """
    chosen = [replace(settings, variant=variant) for variant in variants]
    check_runs(chosen, seeds, source, out, runtime, resume=resume)
    summaries: dict[str, dict[str, Any]] = {}
    for one in chosen:
        results = run_seeds(one, seeds, source, out, runtime, resume=resume)
        if runtime.leads:
            summaries[one.variant] = summarize(results)
    if not runtime.leads:
        return ""
    table = make_table(summaries)
    write_json(out / "compare.json", summaries)
    write_text(out / "compare.md", table)
    return table


def make_table(summaries: dict[str, dict[str, Any]]) -> str:
    """Put the summaries of several variants into one Markdown table, best first."""
    lines = [
        f"| variant | {' | '.join(COLUMNS.values())} | which it is | seeds | minutes a seed |",
        "| --- " * (len(COLUMNS) + 4) + "|",
    ]
    for variant, summary in sorted(summaries.items(), key=_order):
        cells = [_mean_and_sd(summary["columns"].get(name)) for name in COLUMNS]
        named = dict.fromkeys(in_words(name) for name in summary["shortcuts"] if name)
        cells.append(", ".join(named) or "-")
        seeds = ", ".join(map(str, summary["seeds"]))
        minutes = sum(summary["minutes"]) / len(summary["minutes"])
        lines.append(f"| {variant} | {' | '.join(cells)} | {seeds} | {minutes:.1f} |")
    return "\n".join(lines) + "\n"


def _order(pair: tuple[str, dict[str, Any]]) -> float:
    return -pair[1]["columns"]["scored"]["mean"] if pair[1]["columns"] else 0.0


def _mean_and_sd(column: dict[str, Any] | None) -> str:
    if column is None:
        return "-"
    spread = "" if column["sd"] is None else f" ± {column['sd']:.3f}"
    return f"{column['mean']:.3f}{spread}"
