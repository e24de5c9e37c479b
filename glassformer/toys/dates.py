"""Generated source-target pairs for translation: a date, time or number as people write it, and its standard form.

    dates     the third of March, nineteen eighty-four, quarter past two in the afternoon  ->  1984-03-03 14:15
    numbers   three million and forty-two point one five                                   ->  3000042.15
    reverse   kdamq                                                                        ->  qmadk
    copy      kdamq                                                                        ->  kdamq

Example i of a split is a pure function of (task, seed, split, i), so that any number of examples can be streamed
without storage. Levels order a task by length, from short sources (level 0) to long ones.

Every source has one target. Ambiguous forms are not generated: 03/04/1984 (with dots the day comes first wherever they
are used), '84, half two, and midnight, which belongs to two days.

The hash of the target decides the split of an example, so that no wording of a held-out target occurs in training, for
any seed.
"""

from collections.abc import Callable, Iterator
from datetime import date
from zlib import crc32

from glassformer.errors import DataError
from glassformer.toys.stories import SPLITS, RandomChoices
from glassformer.training.data.seq2seq_examples import Seq2SeqExample

HELD_OUT_MODULUS = 8  # one target in this many is held out
YEARS = (1600, 2199)
DIGITS = (3, 6, 9)  # maximum digits of a number, by level
LENGTHS = ((3, 8), (9, 16), (17, 32))  # minimum and maximum letters to copy or reverse, by level
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

# Forms of a day: {d} 3, {dd} 03, {nth} 3rd, {third} third or 3rd, {m} Mar, {mm} 03, {month} March, {y} 1984,
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
# Forms of a day with a time; SHORT_JOINS only where both are short.
JOINS = ("{day}, {time}", "{day} at {time}", "{time} on {day}", "at {time} on {day}", "{time}, {day}")
SHORT_JOINS = (*JOINS, "{day} {time}", "{time} {day}")


def example(task: str, seed: int, split: str, i: int, level: int | None = None) -> Seq2SeqExample:
    """Return example i of a task's split ("train" or "held-out"), a function of the arguments alone.

    level: from 0 (short) to LEVELS - 1 (long); None mixes all levels evenly.
    Raises DataError for an unknown task, split or level.
    """
    if task not in TASKS:
        raise DataError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if level is not None and not 0 <= level < LEVELS:
        raise DataError(f"level must be from 0 to {LEVELS - 1}, or None for all of them, got {level!r}")
    choices = RandomChoices(f"{task}/{seed}/{split}/{level}/{i}")
    chosen = choices.below(LEVELS) if level is None else level
    while split_of(task, (sides := TASKS[task](choices, chosen))[1]) != split:
        pass
    return Seq2SeqExample(*sides, f"{task}/{split}#{i}")


def examples(
    task: str, seed: int, split: str, n: int, level: int | None = None, start: int = 0
) -> Iterator[Seq2SeqExample]:
    """Yield examples start .. start + n - 1 of a task's split."""
    return (example(task, seed, split, i, level) for i in range(start, start + n))


def split_of(task: str, target: str) -> str:
    """Return the split of all examples with this target."""
    return "held-out" if crc32(f"{task} {target}".encode()) % HELD_OUT_MODULUS == 0 else "train"


def count_sources(task: str) -> int:
    """Return a lower bound of the number of different sources in a task's training split.

    Counts one source per target of the longest level, without fractions, times less than the fraction of targets that
    are in the training split. Raises DataError for an unknown task.
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
    """Return a number from 0 to 999,999,999 in words. link: the text before its last part: " and ", or a space."""
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
    """Return the ordinal of a number from 1 to 99 in words: "twenty-first"."""
    *before, last = cardinal(n).split("-")
    last = ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return "-".join([*before, last])


def nth(n: int) -> str:
    """Return the ordinal of a number in digits: "21st"."""
    return f"{n}{'th' if n in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def number_ways(n: int) -> tuple[str, ...]:
    """Return all forms of a number from 0 to 999,999,999: in words, in digits, and mixed."""
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
    """Return a number from 1100 to 9999 in hundreds: "nineteen hundred and four"."""
    return f"{cardinal(n // 100)} hundred" + (link + cardinal(n % 100) if n % 100 else "")


def _number(choices: RandomChoices, level: int) -> tuple[str, str]:
    least = DIGITS[level - 1] + 1 if level else 1
    digits = choices.between((least, DIGITS[level]))
    n = choices.between((10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1))
    words = n < 1000 or choices.below(3) > 0
    source, target = choices.one([way for way in number_ways(n) if way[0].isalpha() == words]), str(n)
    if choices.below(4) == 0:
        fraction = [choices.below(10) for _ in range(choices.between((1, 3)))]
        tail = "".join(map(str, fraction))
        figures = source[-1].isdigit()
        source += f".{tail}" if figures else " point " + " ".join(ONES[i] for i in fraction)
        target += f".{tail}"
    if n and choices.below(4) == 0:
        source = f"{choices.one(('minus ', 'negative '))}{source}"
        target = f"-{target}"
    return source, target


# --- dates and times -------------------------------------------------------------------------------------------------


def year_ways(year: int) -> tuple[str, ...]:
    """Return all forms of a year of YEARS in words: "nineteen hundred and four", "nineteen oh four", ..."""
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
    """Return all forms of a time of day in digits; 12 am is 00:00, and 12 pm is 12:00."""
    twelve, half = hour % 12 or 12, "pm" if hour >= 12 else "am"
    ways = [f"{hour:02}:{minute:02}", f"{hour:02}h{minute:02}", f"{hour:02}{minute:02} hours"]
    ways += [f"{twelve}:{minute:02} {half}", f"{twelve}:{minute:02}{half}", f"{twelve}:{minute:02} {half[0]}.m."]
    return (*ways, f"{twelve} {half}", f"{twelve}{half}") if minute == 0 else tuple(ways)


def long_times(hour: int, minute: int) -> tuple[str, ...]:
    """Return all forms of a time of day in words; at midnight those of 24 hours only."""
    this, following = cardinal(hour % 12 or 12), cardinal((hour + 1) % 12 or 12)
    if minute == 0:
        spoken = [this, f"{this} o'clock"] * (hour > 0)
    else:
        spoken = [f"{this} {'oh ' if minute < 10 else ''}{cardinal(minute)}"]
        past, to = cardinal(minute), cardinal(60 - minute)
        spoken += [f"{past} minute{'s' * (minute > 1)} past {this}"] * (minute <= 30)
        spoken += [f"{to} minute{'s' * (minute < 59)} to {following}"] * (minute > 30)
        spoken += [f"{past} past {this}"] * (minute in (5, 10, 20, 25))
        spoken += [f"{to} to {following}"] * (minute in (35, 40, 50, 55))
        spoken += [f"quarter past {this}", f"a quarter past {this}"] * (minute == 15)
        spoken += [f"half past {this}"] * (minute == 30)
        spoken += [f"quarter to {following}", f"a quarter to {following}"] * (minute == 45)
    ways = [f"{time} {part}" for time in spoken for part in _parts(hour)]
    hours, minutes = ("oh " if 0 < hour < 10 else "") + cardinal(hour), cardinal(minute)
    minutes = "hundred" if minute == 0 else f"oh {minutes}" if minute < 10 else minutes
    return (*ways, f"{hours} {minutes} hours", *(["noon"] * (hour == 12 and minute == 0)))


def _parts(hour: int) -> tuple[str, ...]:
    """Return the words that can follow an hour; no part of the day has two hours of one number."""
    spans = (("in the morning", 1, 11), ("in the afternoon", 12, 17), ("in the evening", 17, 21), ("at night", 21, 24))
    return tuple(part for part, first, last in spans if first <= (hour or 24) <= last)


def _day(choices: RandomChoices, day: date, short: bool) -> str:
    month, weekday, year = MONTHS[day.month - 1], WEEKDAYS[day.weekday()], str(day.year)
    third = nth(day.day) if choices.below(3) == 0 else ordinal(day.day)
    return choices.one(SHORT_DAYS if short else LONG_DAYS).format(
        d=day.day, dd=f"{day.day:02}", nth=nth(day.day), third=third, m=month[:3], mm=f"{day.month:02}", month=month,
        w=weekday[:3], weekday=weekday, y=year, year=choices.one((year, *year_ways(day.year))),
    )  # fmt: skip


def _date(choices: RandomChoices, level: int) -> tuple[str, str]:
    """Level 0: a day or a time in digits; 1: one of them in words; 2: both, each in digits or in words."""
    first, last = date(YEARS[0], 1, 1).toordinal(), date(YEARS[1], 12, 31).toordinal()
    day, hour = date.fromordinal(choices.between((first, last))), choices.below(24)
    minute = choices.one((0, 15, 30, 45)) if choices.below(3) == 0 else choices.below(60)
    clock = f"{hour:02}:{minute:02}"
    if level < 2 and choices.below(4):
        return _day(choices, day, short=level == 0), day.isoformat()
    if level < 2:
        return choices.one((short_times, long_times)[level](hour, minute)), clock
    short_day, short_time = choices.below(3) == 0, choices.below(3) == 0
    time = choices.one((short_times if short_time else long_times)(hour, minute))
    join = choices.one(SHORT_JOINS if short_day and short_time else JOINS)
    return join.format(day=_day(choices, day, short_day), time=time), f"{day.isoformat()} {clock}"


# --- letters ---------------------------------------------------------------------------------------------------------


def _letters(choices: RandomChoices, level: int) -> str:
    return "".join(choices.one(LETTERS) for _ in range(choices.between(LENGTHS[level])))


def _reverse(choices: RandomChoices, level: int) -> tuple[str, str]:
    letters = _letters(choices, level)
    return letters, letters[::-1]


def _copy(choices: RandomChoices, level: int) -> tuple[str, str]:
    letters = _letters(choices, level)
    return letters, letters


TASKS: dict[str, Callable[[RandomChoices, int], tuple[str, str]]] = {
    "dates": _date, "numbers": _number, "reverse": _reverse, "copy": _copy,
}  # fmt: skip
"""Each returns one random example of a level: (source, target)."""
