"""One image of a Nanonis .sxm file: nanonispy2 reads it; here a channel is chosen, turned upright, given a height."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..errors import ScanError
from ..limits import read_whole
from .scans import Slice, real

Direction = Literal["average", "forward", "backward"]
_END = b":SCANIT_END:\n\n\n\x1a\x04"
"""End of the header; nanonispy2 takes the lines and the mark after the word for granted."""
_FORMATS = {"FLOAT MSBFIRST": "big endian float 32", "FLOAT LSBFIRST": "little endian float 32"}
_STILL = 0.01
"""With the controller on, a tip that moves by less than this, A, stayed at its height: a tenth of the usual step."""


def read_sxm(path: Path, channel: str | None, direction: Direction) -> Slice:
    """One channel, seen from the lower left corner: x to the right, y upward.

    The first row is the lowest when SCAN_DIR is up and the highest when it is down; rows of the backward image run from
    right to left. Z grows away from the sample, as in a topograph, where what sticks out has the larger Z; the measured
    h-BN slices of the tests agree: their current and repulsion grow as Z falls.
    """
    header, signals = _load(path)
    scan_dir = header.get("scan_dir", "(missing)")
    if scan_dir not in ("up", "down"):
        raise ScanError(f"its scan direction {scan_dir} is neither up nor down; save it again with Nanonis.")
    name = _channel(header["data_info"]["Name"], channel)
    forward, backward = signals[name]["forward"], signals[name]["backward"][:, ::-1]
    views = {"forward": [forward], "backward": [backward], "average": [forward, backward]}[direction]
    rows = np.mean(views, axis=0, dtype=float)
    image = (rows if scan_dir == "up" else rows[::-1]).T
    lx, ly = 1e10 * header["scan_range"]
    x, y = 1e10 * header["scan_offset"]
    place = (float(x), float(y), float(header.get("scan_angle", 0)))
    return Slice(real(image, name), (float(lx), float(ly)), _height(header, signals), place)


def _load(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Float[np.ndarray, "ny nx"]]]]:
    """Header and rows as scanned, in the words of nanonispy2; what it cannot read, in ours."""
    from nanonispy2.read import Scan

    if _END not in read_whole(path, ScanError):
        raise ScanError("this is no Nanonis scan, or its header is cut off; copy the file again.")
    if path.suffix != ".sxm":
        raise ScanError(f"its suffix must be in lower case; rename it to {path.stem}.sxm.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about comments that are not UTF-8
            scan = Scan(str(path))
            kind = " ".join(scan.header["scanit_type"].split())
            if kind not in _FORMATS:
                raise ScanError(f"its data type {kind} is unknown; save it again with Nanonis.")
            if kind != "FLOAT MSBFIRST":  # which nanonispy2 takes for granted
                scan = Scan(str(path), data_format=_FORMATS[kind])
    except KeyError as error:
        raise ScanError(f"its header lacks {str(error.args[0]).upper()}; save the scan again with Nanonis.") from error
    except ValueError as error:
        # It takes both directions of every channel for granted, so one alone ends here too, and never in a wrong image.
        raise ScanError(
            "its header does not fit its data: it is cut off or damaged, or recorded in one direction only; "
            "copy it again, or save it with both directions."
        ) from error
    return scan.header, scan.signals


def _channel(names: Sequence[str], wanted: str | None) -> str:
    """The channel that was asked for, or the only frequency shift; punctuation and case do not count."""
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    if wanted is None:
        match = [i for i, p in enumerate(plain) if re.search("freq(uency)?shift", p) or p in ("df", "deltaf", "dfhz")]
        what = "frequency shift"
    else:
        match = [i for i, p in enumerate(plain) if p == re.sub(r"[^a-z0-9]", "", wanted.lower())]
        what = f"channel {wanted!r}"
    if len(match) != 1:
        many = "more than one" if match else "no"
        raise ScanError(f"there is {many} {what} among the channels {', '.join(names)}; choose one by name (channel=).")
    return names[match[0]]


def _height(header: dict[str, Any], signals: dict[str, dict[str, Float[np.ndarray, "ny nx"]]]) -> float | None:
    """Height of the tip, A: the mean of the recorded Z, which has more digits, or else the header's; None: neither.

    Refused where feedback moved the tip.
    """
    z = 1e10 * np.array([*signals.get("Z", {}).values()], float)
    z = z[np.isfinite(z)]
    feedback = header.get("z-controller>controller status", "").upper() == "ON"
    if feedback and (not z.size or z.std() > _STILL):
        raise ScanError("it was recorded with the Z controller on; a stack needs images at constant height.")
    if z.size:
        return round(float(z.mean()), 4)  # 32 bits have no more digits, and they must not tell repeats apart
    recorded = header.get("z-controller>z (m)")
    return None if recorded is None else round(1e10 * float(recorded), 4)
