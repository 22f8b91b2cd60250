"""What a run that goes on shares with the run that was stopped: its settings, and the rows of its metrics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoint import training_settings
from ..config import config_from_dict, config_to_dict
from ..errors import ConfigError, WeightsError
from ..files import write_file

FREE = (
    *("out", "name", "steps", "workers", "checkpoint_every", "validate_every", "accelerator"),
    *("validation", "validation_samples"),
)
"""Fields that may be others when a run goes on: no step that was done would have been another with them, but for
`steps`, of which the learning rate of each step is a function. It is the one that people change on purpose."""
BY_CONTENT = ("molecules", "stored", "start")
"""Fields that name files: what counts is what is in them, wherever they lie."""
GO_ON = "go on with the same, or in another folder"


def settings_of(config: Any) -> dict[str, Any]:
    """What decides the steps of a run, as its checkpoint holds it; files by their content, which `origin` and `start`
    say."""
    return {k: v for k, v in config_to_dict(config).items() if k not in (*FREE, *BY_CONTENT)}


def check_settings(checkpoint: Path, settings: dict[str, Any], kind: type) -> None:
    """ConfigError if a checkpoint is of a run of other settings; one of before they were stored passes.

    Fields that its settings lack are newer: they have their defaults.
    """
    stored = training_settings(checkpoint)
    if stored is None:
        return
    begun = stored.pop("start", "")
    try:
        before = settings_of(config_from_dict(kind, stored)) | {"start": begun}
    except ConfigError as error:
        text = f"{checkpoint} is of another version of afmol; finish that run with it, or train in another folder."
        raise WeightsError(text) from error
    place, old, new = next(_differences(before, settings, ""), ("", None, None))
    if place == "start":
        raise ConfigError(f"{checkpoint} is of a run that began with other weights (start); {GO_ON}.")
    if place:
        raise ConfigError(f"{checkpoint} is of a run with {place} {old!r:.60}, not {new!r:.60}; {GO_ON}.")


def _differences(before: dict[str, Any], now: dict[str, Any], above: str) -> Iterator[tuple[str, Any, Any]]:
    """Field, value before and value now of what is not the same."""
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and old.get("kind") == new.get("kind"):
            yield from _differences(old, new, f"{above}{name}.")
        elif isinstance(old, dict) and isinstance(new, dict):
            yield f"{above}{name}.kind", old.get("kind"), new.get("kind")
        elif old != new:
            yield above + name, old, new


def rows_until(metrics: Path, step: int) -> None:
    """Keep the rows up to the step from which a run goes on; of one that begins anew those of the one before it are
    kept in a file of their own. Lines that are torn or damaged go too: the next row would be written behind them."""
    content = metrics.read_bytes()
    rows = content.splitlines(keepends=True)
    kept = b"".join(row for row in rows if _step_of(row) <= step)
    if kept == content:
        return
    if step == 0:
        with metrics.with_name("metrics_before.jsonl").open("ab") as before:
            before.write(content if content.endswith(b"\n") else content + b"\n")
    write_file(metrics, kept)


def _step_of(row: bytes) -> float:
    try:
        return float(json.loads(row)["step"]) if row.endswith(b"\n") else float("inf")
    except (ValueError, LookupError, TypeError, RecursionError):
        return float("inf")
