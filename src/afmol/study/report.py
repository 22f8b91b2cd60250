"""The end of a study: one table, the curves, confusions, and a page that a person would rather read than the JSON."""

import csv
import html
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..files import write_file
from ..limits import read_text
from ..plots.study import part_curves, step_confusions
from ..plots.training import read_metrics
from .run import StudyConfig, Task

Found = dict[str, list[dict[str, Any]]]
"""Results by variant, a list over seeds."""
Table = dict[str, dict[str, tuple[float | None, float | None]]]
"""Variant: title of a figure: mean and spread over seeds."""


def read_results(tasks: Sequence[Task]) -> Found:
    """Results by variant, a list over seeds, with the time a step.

    Raises:
        ConfigError: a result that is missing or damaged.
    """
    found: Found = {}
    for task in tasks:
        try:
            result = json.loads(read_text(task.folder / "result.json", ConfigError))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{task.folder} holds no result; run the same study again.") from error
        rows = read_metrics(task.folder / "metrics.jsonl")
        rates = [row["samples_per_second"] for row in rows if "samples_per_second" in row]
        result["seconds_a_step"] = task.train.batch_size / statistics.median(rates)
        found.setdefault(task.name, []).append(result)
    return found


CLASSES = ("H", "C", "N/P", "O/S", "hal.")


def figures_of(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures of one run that the table shows, by title."""
    whole, paper, shifted, steps = result["whole"], result["whole"]["paper"], result["shifted"], result["steps"] or {}
    parts = result["losses"]
    losses = {"loss: total": sum(parts.values())} | {f"loss: {part}": value for part, value in parts.items()}
    row: dict[str, float | None] = {"parameters": result["parameters"], "s a step": result["seconds_a_step"]} | losses
    row["step: class accuracy"] = steps.get("class_accuracy")
    for kind in ("precision", "recall"):
        values = steps.get(f"class_{kind}") or [None] * len(CLASSES)
        row |= {f"step: {name} {kind}": value for name, value in zip(CLASSES, values, strict=True)}
    row |= {f"step: bond {k}": steps.get(f"bond_{k}") for k in ("precision", "recall", "f1")}
    row["step: bond f1, rule"] = steps.get("rule_bond_f1")
    row |= {f"whole: {k}": paper[k] for k in ("missing", "extra", "class_accuracy")}
    row |= {"whole: N/P precision": paper["class_precision"][2], "whole: N/P recall": paper["class_recall"][2]}
    row |= {f"whole: bond {k}": paper[f"bond_{k}"] for k in ("precision", "recall", "f1")}
    row |= {"whole: bond f1, rule": paper["rule_bond_f1"], "whole: Hausdorff, A": paper["hausdorff_distance"]}
    row["whole: exact graphs"] = whole["exact_graph_rate"]
    moved = {"class accuracy": "class_accuracy", "bond f1": "bond_f1", "atoms f1": "f1"}
    return row | {f"drop at shift: {title}": _drop(whole[k], shifted[k]) for title, k in moved.items()}


def _drop(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def mean_and_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean over seeds and the standard deviation of a single run; None where there is nothing."""
    known = [v for v in values if v is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def study_table(found: Found) -> Table:
    """Variant: title of a figure: mean and spread over seeds."""
    rows = {}
    for name, seeds in found.items():
        figures = [figures_of(result) for result in seeds]
        titles = dict.fromkeys(title for row in figures for title in row)
        rows[name] = {title: mean_and_spread([row.get(title) for row in figures]) for title in titles}
    return rows


def write_report(study: StudyConfig, tasks: Sequence[Task], out: str | Path) -> Path:
    """table.csv, table.md, curves.png, confusions_VARIANT.png, report.html in OUT; returns the last.

    Raises:
        ConfigError: results that are missing, files that cannot be written.
    """
    out, found = Path(out), read_results(tasks)
    figures = study_table(found)
    write_file(out / "table.csv", as_csv(figures, len(study.seeds)).encode())
    write_file(out / "table.md", as_markdown(figures).encode())
    curves: dict[str, list[list[dict[str, float]]]] = {}
    for task in tasks:
        curves.setdefault(task.name, []).append(read_metrics(task.folder / "metrics.jsonl"))
    part_curves(curves, out / "curves.png", study.title)
    pictures: dict[str, list[str]] = {}
    for name, seeds in found.items():
        steps = [result["steps"] for result in seeds if result["steps"]]
        if steps:
            classes, bonds = (np.sum([s[k] for s in steps], axis=0) for k in ("class_confusion", "bond_confusion"))
            step_confusions(classes, bonds, out / f"confusions_{name}.png", name)
            pictures[name] = [f"confusions_{name}.png"]
    for task in tasks:
        if task.seed == study.seeds[0]:
            picture = task.folder.relative_to(out.resolve()) / "shift.png"
            pictures[task.name] = [*pictures.get(task.name, []), picture.as_posix()]
    write_file(out / "report.html", as_html(study, figures, pictures).encode())
    return out / "report.html"


def as_csv(figures: Table, seeds: int) -> str:
    """A line a variant and figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "figure", "mean", "standard deviation", "seeds"])
    for name, row in figures.items():
        for title, (mean, spread) in row.items():
            if mean is not None:
                writer.writerow([name, title, f"{mean:.6g}", "" if spread is None else f"{spread:.3g}", seeds])
    return text.getvalue()


def as_markdown(figures: Table) -> str:
    """A row a figure, a column a variant."""
    names = list(figures)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for title in dict.fromkeys(title for row in figures.values() for title in row):
        cells = (_cell(figures[name].get(title, (None, None))) for name in names)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(figure: tuple[float | None, float | None]) -> str:
    mean, spread = figure
    if mean is None:
        return "-"
    digits = 0 if abs(mean) >= 1000 else 3
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None and digits else "")


def as_html(study: StudyConfig, figures: Table, pictures: dict[str, list[str]]) -> str:
    """One page; the pictures lie beside it."""
    steps = {v.name: f" ({v.steps:,} steps)" if v.steps else "" for v in study.variants}
    about = "".join(
        f"<li><b>{html.escape(v.name)}</b> {html.escape(v.about)}{steps[v.name]}</li>" for v in study.variants
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in figures)
    rows = []
    for title in dict.fromkeys(title for row in figures.values() for title in row):
        cells = "".join(f"<td>{_cell(row.get(title, (None, None)))}</td>" for row in figures.values())
        rows.append(f"<tr><th>{html.escape(title)}</th>{cells}</tr>")
    images = ""
    for name, paths in pictures.items():
        images += f"<h2>{html.escape(name)}</h2>" + "".join(f'<img src="{html.escape(p)}" alt="">' for p in paths)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(study.title)}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:80em;padding:0 1em;color:#222}}
table{{border-collapse:collapse;font-size:13px}}td,th{{padding:.2em .6em;text-align:right;border-bottom:1px solid #ddd}}
tr th:first-child{{text-align:left;font-weight:normal}}thead th{{position:sticky;top:0;background:#fff}}
img{{max-width:100%}}.wide{{overflow-x:auto}}</style>
<h1>{html.escape(study.title)}</h1>
<p>{study.steps:,} steps each unless said, seeds {", ".join(map(str, study.seeds))}; figures on
{study.test_samples:,} samples of molecules that were not trained on: mean ± standard deviation over seeds. "step":
single steps, the position given; "whole": whole graphs; "rule": bonds by the distance table alone; "drop": what is lost
when the image is moved by {study.shift:g} A.</p><ul>{about}</ul><h2>Figures</h2>
<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody></table></div><h2>Losses</h2><img src="curves.png" alt="losses">{images}</html>
"""
