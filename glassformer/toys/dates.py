"""Pairs without end to learn to translate from, made by rule: what people write, and the one form that it stands for.

    dates     the third of March, nineteen eighty-four, quarter past two in the afternoon  ->  1984-03-03 14:15
    numbers   three million and forty-two point one five                                   ->  3000042.15
    reverse   kdamq                                                                        ->  qmadk
    copy      kdamq                                                                        ->  kdamq

Pair i of a split is a pure function of (task, seed, split, i), so that any number of them streams and takes no storage.
Levels grade a task by length, from short sources (level 0) to long ones.

No source means two things. What people do not agree on is left out: 03/04/1984 (with dots, the day comes first by every
custom that uses them), '84, half two, and midnight, which belongs to no one day.

Two sides: the hash of the target decides which split a pair belongs to, so that what is held out occurs in training in
none of its wordings, whatever the seed.
"""

from collections.abc import Callable, Iterator
from datetime import date
from zlib import crc32

from glassformer.errors import DataError
from glassformer.toys.stories import SPLITS, RandomChoices
from glassformer.training.data.seq2seq_examples import Seq2SeqExample

HELD_OUT_MODULUS = 8  # one target in this many is for the held-out side
YEARS = (1600, 2199)
DIGITS = (3, 6, 9)  # of a number, at most, by level
LENGTHS = ((3, 8), (9, 16), (17, 32))  # letters to copy or reverse, least and most, by level
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LEVELS = 3  # of each task

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
            "twelve": "twelfth"}  # fmt: skip
MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

# How a day reads: {d} 3, {dd} 03, {nth} 3rd, {third} third or 3rd, {m} Mar, {mm} 03, {month} March, {y} 1984,
# {year} 1984 or nineteen eighty-four, {w} Sat, {weekday} Saturday.
SHORT_DAYS = (
    "{d} {m} {y}", "{m} {d}, {y}", "{m} {d} {y}", "{nth} {m} {y}", "{m} {nth}, {y}", "{d}-{m}-{y}", "{y} {m} {d}",
    "{y}-{mm}-{dd}", "{y}/{mm}/{dd}", "{dd}.{mm}.{y}", "{d} {month} {y}", "{month} {d}, {y}", "{w} {d} {m} {y}",
)  # fmt: skip
LONG_DAYS = (
    "the {third} of {month}, {year}", "the {third} of {month} {year}", "{month} the {third}, {year}",
    "{month} {third}, {year}", "{third} {month} {year}", "{weekday}, {month} {third}, {year}",
    "{weekday} the {third} of {month}, {year}", "{weekday}, {d} {month} {year}",
    "the {third} day of {month} in the year {year}", "the {third} of {month} in {year}",
)  # fmt: skip
# How a day and a time of it stand together; SHORT_JOINS alone where both are short.
JOINS = ("{day}, {time}", "{day} at {time}", "{time} on {day}", "at {time} on {day}", "{time}, {day}")
SHORT_JOINS = (*JOINS, "{day} {time}", "{time} {day}")


def example(task: str, seed: int, split: str, i: int, level: int | None = None) -> Seq2SeqExample:
    """Pair number i of a task's split ("train" or "held-out"): always the same for the same arguments.

    level: from 0, short, to LEVELS - 1, long; None for all of them, mixed evenly.
    Raises DataError for an unknown task, split or level.
    """
    if task not in TASKS:
        raise DataError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if level is not None and not 0 <= level < LEVELS:
        raise DataError(f"level must be from 0 to {LEVELS - 1}, or None for all of them, got {level!r}")
    draw = RandomChoices(f"{task}/{seed}/{split}/{level}/{i}")
    chosen = draw.below(LEVELS) if level is None else level
    while split_of(task, (made := TASKS[task](draw, chosen))[1]) != split:
        pass
    return Seq2SeqExample(*made, f"{task}/{split}#{i}")


def examples(
    task: str, seed: int, split: str, n: int, level: int | None = None, start: int = 0
) -> Iterator[Seq2SeqExample]:
    """Pairs start .. start + n - 1 of a task's split."""
    return (example(task, seed, split, i, level) for i in range(start, start + n))


def split_of(task: str, target: str) -> str:
    """The split that all pairs with this target belong to."""
    return "held-out" if crc32(f"{task} {target}".encode()) % HELD_OUT_MODULUS == 0 else "train"


def count_sources(task: str) -> int:
    """A lower bound of how many different sources of a task's training split there are.

    Counts one source for each target (none belongs to two), of the longest level, in whole numbers where there are
    fractions too; and, of these, less than the share that the hash leaves to training. Raises DataError for an
    unknown task.
    """
    if task not in TASKS:
        raise DataError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    days = date(YEARS[1] + 1, 1, 1).toordinal() - date(YEARS[0], 1, 1).toordinal()
    letters = len(LETTERS) ** LENGTHS[-1][1]
    numbers = 10 ** DIGITS[-1] - 10 ** DIGITS[-2]
    targets = {"dates": days * 24 * 60, "numbers": numbers, "reverse": letters, "copy": letters}
    return targets[task] * (HELD_OUT_MODULUS - 2) // HELD_OUT_MODULUS


# --- numbers ---------------------------------------------------------------------------------------------------------


def cardinal(n: int, link: str = " and ") -> str:
    """A number from 0 to 999,999,999 in words. link: what stands before its last part: " and ", or a space."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    for unit, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if n >= unit:
            head, rest = f"{cardinal(n // unit, link)} {name}", n % unit
            return head + (f"{link if rest < 100 else ' '}{cardinal(rest, link)}" if rest else "")
    raise AssertionError(n)


def ordinal(n: int) -> str:
    """A number from 1 to 99 in words, as it counts days: "twenty-first"."""
    *before, last = cardinal(n).split("-")
    last = ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return "-".join([*before, last])


def nth(n: int) -> str:
    """The same in digits: "21st"."""
    return f"{n}{'th' if n in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def number_ways(n: int) -> tuple[str, ...]:
    """A number from 0 to 999,999,999 in all the ways it is written here: in words, in figures, and mixed."""
    words = {cardinal(n), cardinal(n, " ")}
    if 1100 <= n < 10_000 and n // 100 % 10:
        words |= {_hundreds(n, " and "), _hundreds(n, " ")}
    words |= {f"a{way[3:]}" for way in words if way.startswith(("one hundred", "one thousand", "one million"))}
    millions, thousands, rest = n // 10**6, n // 1000 % 1000, n % 1000
    if n >= 1000:
        parts = ((millions, " million"), (thousands, " thousand"), (rest, ""))
        words |= {f"{n:,}", f"{n:,}".replace(",", " "), " ".join(f"{part}{name}" for part, name in parts if part)}
    return tuple(sorted(words))


def _hundreds(n: int, link: str) -> str:
    """A number from 1100 to 9999 counted in hundreds: "nineteen hundred and four"."""
    return f"{cardinal(n // 100)} hundred" + (link + cardinal(n % 100) if n % 100 else "")


def _number(draw: RandomChoices, level: int) -> tuple[str, str]:
    least = DIGITS[level - 1] + 1 if level else 1
    digits = draw.between((least, DIGITS[level]))
    n = draw.between((10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1))
    words = n < 1000 or draw.below(3) > 0
    source, target = draw.one([way for way in number_ways(n) if way[0].isalpha() == words]), str(n)
    if draw.below(4) == 0:
        fraction = [draw.below(10) for _ in range(draw.between((1, 3)))]
        tail = "".join(map(str, fraction))
        figures = source[-1].isdigit()
        source += f".{tail}" if figures else " point " + " ".join(ONES[i] for i in fraction)
        target += f".{tail}"
    if n and draw.below(4) == 0:
        source = f"{draw.one(('minus ', 'negative '))}{source}"
        target = f"-{target}"
    return source, target


# --- dates and times -------------------------------------------------------------------------------------------------


def year_ways(year: int) -> tuple[str, ...]:
    """A year of YEARS in words, in all the ways it is said: "nineteen hundred and four", "nineteen oh four", ..."""
    century, rest = divmod(year, 100)
    ways = {cardinal(year)}
    if rest:
        ways.add(f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}")
    if century % 10:
        ways.add(_hundreds(year, " and "))
    else:
        ways.add(cardinal(year, " "))
    return tuple(sorted(ways))


def short_times(hour: int, minute: int) -> tuple[str, ...]:
    """A time of day in figures, in all the ways it is written; 12 am is 00:00, and 12 pm is 12:00."""
    twelve, half = hour % 12 or 12, "pm" if hour >= 12 else "am"
    ways = [f"{hour:02}:{minute:02}", f"{hour:02}h{minute:02}", f"{hour:02}{minute:02} hours"]
    ways += [f"{twelve}:{minute:02} {half}", f"{twelve}:{minute:02}{half}", f"{twelve}:{minute:02} {half[0]}.m."]
    return (*ways, f"{twelve} {half}", f"{twelve}{half}") if minute == 0 else tuple(ways)


def long_times(hour: int, minute: int) -> tuple[str, ...]:
    """A time of day in words, in all the ways it is said; at midnight by 24 hours alone."""
    this, following = cardinal(hour % 12 or 12), cardinal((hour + 1) % 12 or 12)
    if minute == 0:
        said = [this, f"{this} o'clock"] * (hour > 0)
    else:
        said = [f"{this} {'oh ' if minute < 10 else ''}{cardinal(minute)}"]
        past, to = cardinal(minute), cardinal(60 - minute)
        said += [f"{past} minute{'s' * (minute > 1)} past {this}"] * (minute <= 30)
        said += [f"{to} minute{'s' * (minute < 59)} to {following}"] * (minute > 30)
        said += [f"{past} past {this}"] * (minute in (5, 10, 20, 25))
        said += [f"{to} to {following}"] * (minute in (35, 40, 50, 55))
        said += [f"quarter past {this}", f"a quarter past {this}"] * (minute == 15)
        said += [f"half past {this}"] * (minute == 30)
        said += [f"quarter to {following}", f"a quarter to {following}"] * (minute == 45)
    ways = [f"{time} {part}" for time in said for part in _parts(hour)]
    hours, minutes = ("oh " if 0 < hour < 10 else "") + cardinal(hour), cardinal(minute)
    minutes = "hundred" if minute == 0 else f"oh {minutes}" if minute < 10 else minutes
    return (*ways, f"{hours} {minutes} hours", *(["noon"] * (hour == 12 and minute == 0)))


def _parts(hour: int) -> tuple[str, ...]:
    """What is said of an hour after its number: no part of the day has two hours of one number."""
    spans = (("in the morning", 1, 11), ("in the afternoon", 12, 17), ("in the evening", 17, 21), ("at night", 21, 24))
    return tuple(part for part, first, last in spans if first <= (hour or 24) <= last)


def _day(draw: RandomChoices, day: date, short: bool) -> str:
    month, weekday, year = MONTHS[day.month - 1], WEEKDAYS[day.weekday()], str(day.year)
    third = nth(day.day) if draw.below(3) == 0 else ordinal(day.day)
    return draw.one(SHORT_DAYS if short else LONG_DAYS).format(
        d=day.day, dd=f"{day.day:02}", nth=nth(day.day), third=third, m=month[:3], mm=f"{day.month:02}", month=month,
        w=weekday[:3], weekday=weekday, y=year, year=draw.one((year, *year_ways(day.year))),
    )  # fmt: skip


def _date(draw: RandomChoices, level: int) -> tuple[str, str]:
    """Level 0: a day or a time in figures; 1: one of them in words; 2: both, each in figures or in words."""
    first, last = date(YEARS[0], 1, 1).toordinal(), date(YEARS[1], 12, 31).toordinal()
    day, hour = date.fromordinal(draw.between((first, last))), draw.below(24)
    minute = draw.one((0, 15, 30, 45)) if draw.below(3) == 0 else draw.below(60)
    clock = f"{hour:02}:{minute:02}"
    if level < 2 and draw.below(4):
        return _day(draw, day, short=level == 0), day.isoformat()
    if level < 2:
        return draw.one((short_times, long_times)[level](hour, minute)), clock
    short_day, short_time = draw.below(3) == 0, draw.below(3) == 0
    time = draw.one((short_times if short_time else long_times)(hour, minute))
    join = draw.one(SHORT_JOINS if short_day and short_time else JOINS)
    return join.format(day=_day(draw, day, short_day), time=time), f"{day.isoformat()} {clock}"


# --- letters ---------------------------------------------------------------------------------------------------------


def _letters(draw: RandomChoices, level: int) -> str:
    return "".join(draw.one(LETTERS) for _ in range(draw.between(LENGTHS[level])))


def _reverse(draw: RandomChoices, level: int) -> tuple[str, str]:
    letters = _letters(draw, level)
    return letters, letters[::-1]


def _copy(draw: RandomChoices, level: int) -> tuple[str, str]:
    letters = _letters(draw, level)
    return letters, letters


TASKS: dict[str, Callable[[RandomChoices, int], tuple[str, str]]] = {
    "dates": _date, "numbers": _number, "reverse": _reverse, "copy": _copy,
}  # fmt: skip
"""Each draws one pair of a level: (source, target)."""
