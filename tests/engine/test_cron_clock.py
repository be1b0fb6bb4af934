"""Crontabs against a clock that is walked second by second, with a matcher of its own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from streaq.engine.cron import Crontab
from streaq.types import StreaqError

ZONES: list[tzinfo] = [
    UTC,
    ZoneInfo("Europe/Berlin"),
    ZoneInfo("America/New_York"),
    ZoneInfo("Australia/Lord_Howe"),  # half an hour of daylight saving
    ZoneInfo("America/Sao_Paulo"),  # changed at midnight, until 2019
    ZoneInfo("Pacific/Apia"),  # had no 30 December 2011
]
# About a day before each kind of change.
EVES = [
    datetime(2026, 3, 28, tzinfo=UTC),  # Berlin forward
    datetime(2026, 10, 24, tzinfo=UTC),  # Berlin back
    datetime(2026, 3, 7, tzinfo=UTC),  # New York forward
    datetime(2026, 10, 31, tzinfo=UTC),  # New York back
    datetime(2026, 10, 2, tzinfo=UTC),  # Lord Howe forward
    datetime(2026, 4, 3, tzinfo=UTC),  # Lord Howe back
    datetime(2018, 11, 3, tzinfo=UTC),  # Sao Paulo forward
    datetime(2018, 2, 17, tzinfo=UTC),  # Sao Paulo back
    datetime(2011, 12, 29, tzinfo=UTC),  # Apia loses a day
    datetime(2027, 12, 30, tzinfo=UTC),  # the end of a year
    datetime(2028, 2, 27, tzinfo=UTC),  # a leap day
]


def ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


# -- The clock


def walk(
    tz: tzinfo, start: datetime, length: timedelta, step: timedelta
) -> Iterator[tuple[int, datetime, list[datetime]]]:
    """Give each real moment, the wall it shows, and the walls that it is the first to reach.

    The last are none while the clock shows an hour again, and several after a gap.
    """
    moment = start - max(
        step * 26 * 60, timedelta(hours=2)
    )  # so that an hour doubled just before is known
    highest = moment.astimezone(tz).replace(tzinfo=None)
    while moment < start + length:
        moment += step
        wall = moment.astimezone(tz).replace(tzinfo=None)
        reached = [highest + step * (n + 1) for n in range((wall - highest) // step)]
        highest = max(highest, wall)
        if moment > start:
            yield ms(moment), wall, reached


def by_hand(
    matches: Callable[[datetime], bool],
    *,
    every_hour: bool,
    tz: tzinfo,
    start: datetime,
    length: timedelta,
    step: timedelta,
) -> list[int]:
    return [
        moment
        for moment, wall, reached in walk(tz, start, length, step)
        if (matches(wall) if every_hour else any(map(matches, reached)))
    ]


def forwards(tab: Crontab, start: datetime, end: datetime) -> list[int]:
    found: list[int] = []
    at = tab.next_after(ms(start))
    while at is not None and at <= ms(end):
        found.append(at)
        at = tab.next_after(at)
    return found


def backwards(tab: Crontab, start: datetime, end: datetime) -> list[int]:
    found: list[int] = []
    at = tab.last_at_or_before(ms(end))
    while at is not None and at > ms(start):
        found.append(at)
        at = tab.last_at_or_before(at - 1)
    return found[::-1]


# -- Expressions, each with the values it stands for


@dataclass(frozen=True)
class Field:
    text: str
    values: frozenset[int]

    def restricts(self, values: int, other: Field) -> bool:
        """Whether it is given, of a day and a weekday. One that names every value is, so that 13
        and 0-6 are every day; but not beside a star with a step: of */2 and 0-6, */2 is left.
        """
        is_star = self.text == "*" or (len(self.values) == values and "*" in other.text)
        return not is_star


@dataclass(frozen=True)
class Sample:
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    @property
    def expression(self) -> str:
        parts = (self.minute, self.hour, self.day, self.month, self.weekday)
        return " ".join(part.text for part in parts)

    @property
    def every_hour(self) -> bool:
        return len(self.hour.values) == 24

    def matches(self, wall: datetime) -> bool:
        by_day = wall.day in self.day.values
        by_weekday = wall.isoweekday() % 7 in self.weekday.values
        either = self.day.restricts(31, self.weekday) and self.weekday.restricts(7, self.day)
        return (
            wall.minute in self.minute.values
            and wall.hour in self.hour.values
            and wall.month in self.month.values
            and ((by_day or by_weekday) if either else (by_day and by_weekday))
        )


def fields(
    low: int, high: int, names: dict[str, set[int]] | None = None
) -> st.SearchStrategy[Field]:
    value = st.integers(low, high)
    kinds: list[st.SearchStrategy[Field]] = [
        # Twice, for samples that name every field are nearly always silent.
        st.just(Field("*", frozenset(range(low, high + 1)))),
        st.just(Field("*", frozenset(range(low, high + 1)))),
        value.map(lambda v: Field(str(v), frozenset([v]))),
        st.integers(2, (high - low) // 2).map(
            lambda step: Field(f"*/{step}", frozenset(range(low, high + 1, step)))
        ),
        st.lists(value, min_size=2, max_size=4, unique=True).map(
            lambda vs: Field(",".join(map(str, vs)), frozenset(vs))
        ),
        st.tuples(value, value)
        .filter(lambda ends: ends[0] < ends[1])
        .map(lambda ends: Field(f"{ends[0]}-{ends[1]}", frozenset(range(ends[0], ends[1] + 1)))),
    ]
    if names:
        kinds.append(
            st.sampled_from(sorted(names)).map(lambda name: Field(name, frozenset(names[name])))
        )
    return st.one_of(kinds)


samples = st.builds(
    Sample,
    fields(0, 59),
    fields(0, 23),
    fields(1, 31),
    fields(1, 12, {"mar-oct": set(range(3, 11)), "nov": {11}}),
    fields(0, 6, {"mon-fri": {1, 2, 3, 4, 5}, "sun": {0}, "sat": {6}}),
)


def parse_unless_empty(sample: Sample, tz: tzinfo) -> Crontab | None:
    """The crontab; None if it names a date such as 30 February."""
    try:
        return Crontab.parse(sample.expression, tz)
    except StreaqError as e:
        if "never fires" not in str(e):
            raise
        return None


THE_13TH_AND_ALL_WEEKDAYS = Sample(
    Field("*", frozenset(range(60))),
    Field("*", frozenset(range(24))),
    Field("13", frozenset([13])),
    Field("*", frozenset(range(1, 13))),
    Field("0-6", frozenset(range(7))),
)
ODD_DAYS_AND_ALL_WEEKDAYS = replace(
    THE_13TH_AND_ALL_WEEKDAYS, day=Field("*/2", frozenset(range(1, 32, 2)))
)


@settings(max_examples=150, deadline=None)
@given(samples, st.sampled_from(ZONES), st.sampled_from(EVES), st.integers(0, 36 * 60))
@example(ODD_DAYS_AND_ALL_WEEKDAYS, UTC, EVES[0], 0)
@example(THE_13TH_AND_ALL_WEEKDAYS, UTC, EVES[0], 0)
def test_no_firing_is_lost_or_invented(
    sample: Sample, tz: tzinfo, eve: datetime, minutes: int
) -> None:
    start = eve + timedelta(minutes=minutes)
    length = timedelta(hours=50)
    expected = by_hand(
        sample.matches,
        every_hour=sample.every_hour,
        tz=tz,
        start=start,
        length=length,
        step=timedelta(minutes=1),
    )
    tab = parse_unless_empty(sample, tz)
    if tab is None:
        assert not expected
        return
    assert forwards(tab, start, start + length) == expected
    assert backwards(tab, start, start + length) == expected
    assert len(list(tab.between(ms(start), ms(start + length)))) == len(expected)
    for asked in range(ms(start), ms(start + length), 47 * 60_000):
        past = bisect_right(expected, asked)
        if past > 0:
            assert tab.last_at_or_before(asked) == expected[past - 1]
        if past < len(expected):
            assert tab.next_after(asked) == expected[past]


@settings(max_examples=200, deadline=None)
@given(
    samples,
    st.sampled_from(ZONES),
    st.integers(ms(datetime(1990, 1, 1, tzinfo=UTC)), ms(datetime(2080, 1, 1, tzinfo=UTC))),
)
def test_next_increases_and_last_agrees_with_it(sample: Sample, tz: tzinfo, after: int) -> None:
    tab = parse_unless_empty(sample, tz)
    assume(tab is not None)
    assert tab is not None  # for the type checker
    for _ in range(20):
        following = tab.next_after(after)
        assert following is not None
        assert following > after
        assert following % 1000 == 0
        assert tab.next_after(following - 1) == following
        assert tab.last_at_or_before(following) == following
        before = tab.last_at_or_before(following - 1)
        assert before is None or before <= after
        after = following


def every_seventh_second(wall: datetime) -> bool:
    return wall.second % 7 == 0


def early_half_minutes(wall: datetime) -> bool:
    return (wall.second, wall.minute % 2) == (30, 0) and 1 <= wall.hour <= 3


@pytest.mark.parametrize(
    ("expression", "matches", "every_hour"),
    [
        ("*/7 * * * * *", every_seventh_second, True),
        ("30 */2 1-3 * * *", early_half_minutes, False),
        ("30 */2 1-3 * * * 2000-2099", early_half_minutes, False),
    ],
)
@pytest.mark.parametrize(
    ("tz", "change"),
    [
        (ZONES[1], datetime(2026, 3, 29, 1, tzinfo=UTC)),
        (ZONES[1], datetime(2026, 10, 25, 1, tzinfo=UTC)),
        (ZONES[2], datetime(2026, 3, 8, 7, tzinfo=UTC)),
        (ZONES[2], datetime(2026, 11, 1, 6, tzinfo=UTC)),
        (ZONES[3], datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
        (ZONES[3], datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("minutes_before", [70, -20])
def test_seconds_around_a_change(
    expression: str,
    matches: Callable[[datetime], bool],
    every_hour: bool,
    tz: tzinfo,
    change: datetime,
    minutes_before: int,
) -> None:
    start = change - timedelta(minutes=minutes_before)
    length = timedelta(minutes=150)
    step = timedelta(seconds=1)
    assert (change - step).astimezone(tz).utcoffset() != change.astimezone(tz).utcoffset()
    expected = by_hand(matches, every_hour=every_hour, tz=tz, start=start, length=length, step=step)
    tab = Crontab.parse(expression, tz)
    assert expected
    assert forwards(tab, start, start + length) == expected
    assert backwards(tab, start, start + length) == expected
