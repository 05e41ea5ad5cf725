"""How a recording is separated: every option once, with its default and its check."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from speechbrain_spgm.audio import Format, find_format
from speechbrain_spgm.choices import MODES, STATISTICS
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.inference.augment import check_views
from speechbrain_spgm.inference.level import check_levels
from speechbrain_spgm.inference.long.assignment import check_speakers
from speechbrain_spgm.inference.memory import parse_bytes
from speechbrain_spgm.inference.progress import Progress
from speechbrain_spgm.inference.separable import Separable
from speechbrain_spgm.lobes.statistics import Statistics, statistics_of

WRITING = ("format", "subtype")  # for files only


@dataclass(frozen=True)
class Options:
    """The keywords of ``SPGMSeparation.separate_file`` and ``separate_to_files``.

    Arguments
    ---------
    normalize : str, optional
        ``None`` keeps the level of the mixture: every output has the gain by which
        the sum of all fits the mixture best. ``"peak"``: every output has peak 1,
        as in SpeechBrain. Silence stays silence in both.
    mode : str
        ``"exact"``: the whole file at once. ``"stitched"``: overlapping windows,
        put in order by all the evidence in the file and cross-faded. ``"auto"``:
        exact, which has no seams, if its estimated memory fits.
    max_memory : int or str, optional
        What the exact mode may take, in bytes or like ``"4G"``; by default half of
        what is free.
    window : float
        Seconds of a window, at least 1; a file that is no longer is separated exactly.
    overlap : float, optional
        Seconds that neighbouring windows share; by default a third of a window,
        which is the most.
    views : int, optional
        Test-time augmentation, as in ``separate_batch``; by default what the model's
        card asks for.
    progress : bool or callable
        Whether a bar shows the time left; or what is told how many steps are done and
        how many there are.
    statistics : str
        What SPGM's averages are over. ``"whole"``: the recording, as in the paper.
        ``"running"``: for each chunk all that was heard so far, the first second in
        common. ``"window"``: for each chunk the seconds around it.
    statistics_seconds : float, optional
        Of a window, by default 8; or after which running ones count the past a third
        (1/e), by default never.
    consistent : bool
        Whether the voices sum exactly to the mixture: what they lack, such as an
        offset, noise, and what the model's rate cannot hold, is shared out equally.
    full_band : bool, optional
        Whether voices of recordings at a higher rate than the model's get back what
        the recording has above the model's band, each the share that fits what it has
        below. By default in files, not in tensors.
    channel : int, optional
        The one channel to take, counted from 1, in place of the mean of all.
    format : str, optional
        Of files to write: ``"wav"``, ``"flac"``, ``"ogg"``, ``"opus"``, ``"mp3"``,
        ``"aiff"``, ``"caf"``, ``"w64"`` or ``"au"``; by default the ending of the first
        output, or WAV. WAV files above 4 GiB become RF64.
    subtype : str, optional
        ``"float"``, ``"double"``, ``"16"``, ``"24"`` or ``"32"`` (bits); by default
        float, 24 in FLAC. Where samples beyond full scale cannot be written, all
        voices are made quieter if one would clip, and that is logged.
    """

    normalize: str | None = None
    mode: str = "auto"
    max_memory: int | str | None = None
    window: float = 15.0
    overlap: float | None = None
    views: int | None = None
    progress: Progress = False
    statistics: str = "whole"
    statistics_seconds: float | None = None
    consistent: bool = False
    full_band: bool | None = None
    channel: int | None = None
    format: str | None = None
    subtype: str | None = None

    @classmethod
    def names(cls) -> list[str]:
        """What can be chosen."""
        return [field.name for field in fields(cls)]

    @classmethod
    def of(cls, chosen: Mapping[str, Any], without: tuple[str, ...] = ()) -> Options:
        """Options from a caller's keywords.

        Example
        -------
        >>> Options.of({"mode": "exact"}).window
        15.0
        >>> Options.of({"mod": "exact"})
        Traceback (most recent call last):
        ...
        speechbrain_spgm.errors.UserError: there is no option mod: did you mean mode?
        """
        known = [name for name in cls.names() if name not in without]
        for name in chosen:
            if name not in known:
                near = get_close_matches(name, known, 1)
                listed = f"{', '.join(known[:-1])} or {known[-1]}"
                remedy = f"did you mean {near[0]}?" if near else f"take {listed}."
                raise UserError(f"there is no option {name}: {remedy}")
        return cls(**chosen)

    def checked(self, model: Separable, output: str | Path = "") -> Options:
        """These, refused if a value is wrong; what is left open is filled in.

        They must fit ``model`` and ``output``, the first file to write.
        """
        check_levels(self.normalize, self.consistent)
        if self.mode not in MODES:
            raise UserError(f"mode is {self.mode!r}, but must be {', '.join(MODES)}.")
        limit = self.max_memory
        if isinstance(limit, str):
            limit = parse_bytes(limit)
        if limit is not None and (type(limit) is not int or limit < 1):
            raise UserError(
                f"max_memory is {limit!r}, but must be a number of bytes, or like 4G."
            )
        self._check_statistics(model)
        channel = self.channel
        if channel is not None and (type(channel) is not int or channel < 1):
            raise UserError(
                f"channel is {channel!r}, but must be a whole number from 1."
            )
        if self.full_band not in (None, True, False):
            raise UserError(f"full_band is {self.full_band!r}, but must be a bool.")
        form = find_format(self.format, self.subtype, output)
        window = _seconds("window", self.window)
        if not 1 <= window < math.inf:
            raise UserError(f"window is {window:g} s, but must be at least 1 s.")
        overlap = window / 3
        if self.overlap is not None:
            overlap = _seconds("overlap", self.overlap)
        if not 0 < overlap <= window / 3 + 1e-9:
            raise UserError(
                f"overlap is {overlap:g} s, but must be above 0 and at most a third of "
                f"the window, {window / 3:g} s."
            )
        if self.mode == "stitched":
            check_speakers(model.num_spks)
        views = model.views if self.views is None else check_views(self.views)
        return replace(
            self, max_memory=limit, overlap=overlap, views=views, format=form.name
        )

    def _check_statistics(self, model: Separable) -> None:
        if self.statistics not in STATISTICS:
            raise UserError(
                f"statistics is {self.statistics!r}, but must be "
                f"{', '.join(STATISTICS)}."
            )
        seconds = self.statistics_seconds
        if seconds is not None and self.statistics == "whole":
            raise UserError(
                f"statistics_seconds is {seconds!r}, but those of the whole recording "
                "have none: take statistics running or window."
            )
        if seconds is not None and not 0 < _seconds("statistics_seconds", seconds):
            raise UserError(f"statistics_seconds is {seconds!r}, but must be above 0.")
        if self.statistics != "whole" and model.row_seconds is None:
            raise UserError(
                f"statistics is {self.statistics!r}, but the model is no SPGM network "
                "and looks at whole recordings: leave it out."
            )

    def rule(self, model: Separable) -> Statistics | None:
        """What averages are over, for the network; None: the whole recording."""
        if self.statistics == "whole":
            return None
        seconds = self.statistics_seconds
        chosen = {"horizon": seconds} if self.statistics == "running" else {}
        if self.statistics == "window" and seconds is not None:
            chosen["window"] = seconds
        return statistics_of(self.statistics, model.row_seconds, **chosen)

    @property
    def form(self) -> Format:
        """How files are written."""
        return find_format(self.format, self.subtype)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{name} is {value!r}, but must be a number of seconds.")
    return value
