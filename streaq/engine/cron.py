"""Next-run maths: when a crontab fires, in a time zone, across daylight-saving changes.

croniter reads the expression and walks plain wall-clock time; this module maps walls to real
moments. Its rule, which docs/cron.md explains to users:

- *Fixed hours* (the hour field names some hours: ``30 2 * * *``, ``0 */2 * * *``): each matching
  wall-clock time fires exactly once. One that does not exist on the day the clock springs forward
  fires at the first moment after the gap, where several of them merge into one firing. One that
  occurs twice when the clock falls back fires the first time only.
- *Every hour* (``*/5 * * * *``, ``0-30 * * * *``, seconds): fires at every real moment whose wall
  clock matches, so through both of the doubled hours, and not for the hour that does not exist.

Both are one picture: time is cut into pieces at the clock changes, and each piece answers for a
range of walls. For fixed hours the ranges join without gap or overlap (a wall missing from the
clock belongs to the piece after the gap, a doubled one to the piece before the change); for every
hour each piece answers for what its own clock shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Final, NamedTuple

from croniter import CroniterBadDateError, CroniterError, croniter

from streaq.types import StreaqError

FORMS: Final = (
    "use 5 fields (minute hour day month weekday), 6 (a second first), 7 (a second first, "
    "a year last), or an alias such as @hourly"
)
FIELDS: Final = {
    5: ("minute", "hour", "day", "month", "weekday"),
    6: ("second", "minute", "hour", "day", "month", "weekday"),
    7: ("second", "minute", "hour", "day", "month", "weekday", "year"),
}
HOUR_FIELD: Final = 1  # in croniter's own order, whatever the form
# Covers every year that croniter's year field can name (1970-2099), and the 40 years that may
# pass between two leap days on a given weekday.
MAX_YEARS: Final = 130
# How far around a moment clock changes are looked for, in seconds. At least as long as the longest
# overlap (a day, at the date line), and short enough that no two changes fall into one stretch.
SPAN: Final = 2 * 86_400
# How far apart two offsets of one zone can be, in seconds: from UTC-12 to UTC+14. That is more than
# the day that Apia skipped, because it did so in summer time.
MOST_SHIFT: Final = 26 * 3_600


class _Piece(NamedTuple):
    """A stretch of real time in which the clock runs evenly. All in seconds, walls as if UTC."""

    start: int
    end: int  # the first second after it
    offset: int  # wall - moment
    first_wall: int  # the lowest wall it answers for
    starts_at_change: bool
    ends_at_change: bool


@dataclass(frozen=True, slots=True)
class Crontab:
    """A crontab in a time zone, which knows when it fires. Immutable, and safe to share by threads.

    :param expression: 5 fields; or 6, the first of them seconds; or 7, the last of them the year
        (1970-2099); or an alias such as ``@hourly``. Months and weekdays may be names.
    :param tz: the zone in which the fields are read; default UTC.
    :raises StreaqError: if the expression is invalid, or names a date that never exists.

    Example::

        tab = Crontab.parse("30 9 * * mon-fri", ZoneInfo("Europe/Berlin"))
        tab.next_after(1_767_225_600_000)  # 1_767_256_200_000: Thursday 1 January 2026, 9:30
    """

    expression: str
    tz: tzinfo = UTC
    _cron: croniter[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cron", _read(self.expression))

    @classmethod
    def parse(cls, expression: str, tz: tzinfo = UTC) -> Crontab:
        """Read an expression; see the class for the parameters and the error raised."""
        return cls(expression.strip(), tz)

    def next_after(self, after_ms: int) -> int | None:
        """Give the first firing strictly after a moment.

        :param after_ms: UTC epoch milliseconds.
        :returns: UTC epoch milliseconds, or None if it never fires again (its years are over).
        """
        at = after_ms // 1000 + 1
        while True:
            piece = self._piece(at)
            wall = piece.first_wall
            if at > piece.start:
                wall = max(wall, at + piece.offset)
            found = self._wall_from(wall)
            if found is not None and (moment := max(found - piece.offset, piece.start)) < piece.end:
                return moment * 1000
            if piece.ends_at_change:
                at = piece.end
            elif found is None:
                return None
            else:
                # Nothing matches before this wall, so skip to the piece that will answer for it.
                at = max(piece.end, found - piece.offset - MOST_SHIFT)

    def last_at_or_before(self, ms: int) -> int | None:
        """Give the latest firing that is not after a moment.

        :param ms: UTC epoch milliseconds.
        :returns: UTC epoch milliseconds, or None if it never fired before.
        """
        at = ms // 1000
        while True:
            piece = self._piece(at)
            found = self._wall_until(at + piece.offset)
            if found is not None and found >= piece.first_wall:
                return max(found - piece.offset, piece.start) * 1000
            if piece.starts_at_change:
                at = piece.start - 1
            elif found is None:
                return None
            else:
                at = min(piece.start - 1, found - piece.offset + MOST_SHIFT)

    def between(self, start_ms: int, end_ms: int) -> Iterator[int]:
        """Give the firings after ``start_ms`` and not after ``end_ms``, one by one."""
        moment = self.next_after(start_ms)
        while moment is not None and moment <= end_ms:
            yield moment
            moment = self.next_after(moment)

    def _piece(self, at: int) -> _Piece:
        """Find the piece that holds a moment, or as much of it as lies within SPAN of it."""
        start, end = at - SPAN, at + SPAN
        before, offset, after = self._offset(start), self._offset(at), self._offset(end)
        if before != offset:
            start = self._change(start, at)
        if after != offset:
            end = self._change(at, end)
        every_hour = self._cron.expanded[HOUR_FIELD] == ["*"]
        first_wall = start + (offset if every_hour else before)
        return _Piece(start, end, offset, first_wall, before != offset, after != offset)

    def _change(self, low: int, high: int) -> int:
        """Find the clock change between two moments: the first that has the offset of ``high``."""
        final = self._offset(high)
        moments = range(low, high)
        return low + bisect_left(moments, True, key=lambda moment: self._offset(moment) == final)

    def _offset(self, moment: int) -> int:
        offset = datetime.fromtimestamp(moment, self.tz).utcoffset()
        return int(offset.total_seconds()) if offset is not None else 0

    # croniter keeps its place in itself: a copy for each question lets threads share a crontab.

    def _wall_from(self, wall: int) -> int | None:
        """Find the first matching wall, at this one or later."""
        try:
            return int(copy(self._cron).get_next(float, start_time=float(wall - 1)))
        except CroniterBadDateError:
            return None

    def _wall_until(self, wall: int) -> int | None:
        """Find the last matching wall, at this one or earlier."""
        try:
            return int(copy(self._cron).get_prev(float, start_time=float(wall + 1)))
        except CroniterBadDateError:
            return None


# Reading an expression: croniter's parser, our errors.


def _read(expression: str) -> croniter[float]:
    fields = expression.split()
    # croniter would draw lots for an "R" field: each process would have a schedule of its own.
    if any(text.lower().startswith("r") for text in fields):
        raise StreaqError(f"crontab {expression!r}: random (R) fields are not supported; {FORMS}")
    try:
        cron = _croniter(expression)
    except CroniterError:
        raise StreaqError(f"crontab {expression!r} is invalid: {_blame(fields)}; {FORMS}") from None
    try:
        _ = cron.get_next(float, start_time=-1.0)
    except CroniterBadDateError:
        raise StreaqError(
            f"crontab {expression!r} never fires: no date matches all of its fields"
        ) from None
    return cron


def _croniter(expression: str) -> croniter[float]:
    return croniter(
        expression,
        0.0,
        second_at_beginning=True,
        max_years_between_matches=MAX_YEARS,
    )


def _blame(fields: list[str]) -> str:
    """Say which field makes an expression invalid."""
    names = FIELDS.get(len(fields))
    if names is None:
        return f"unknown alias {fields[0]!r}" if len(fields) == 1 else f"{len(fields)} fields"
    for place, name in enumerate(names):
        alone = ["*"] * len(fields)
        alone[place] = fields[place]
        try:
            _ = _croniter(" ".join(alone))
        except CroniterError:
            return f"the {name} field {fields[place]!r} is wrong"
    return "its fields do not fit together"
