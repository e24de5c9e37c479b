"""Parse dates, times and numbers independently of their generator: slowly, returning all readings.

The parser accepts more than the generator produces: hyphens count as spaces, every split between day and time is tried,
and parts of the day overlap. So a text with a single reading is unambiguous.
"""

import re
from datetime import date

NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
SMALL = {name: i for i, name in enumerate([*NAMES.split(), "eighteen", "nineteen"])}
TENS = {name: 10 * i for i, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
ENDS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14, "fifteenth": 15, "sixteenth": 16,
    "seventeenth": 17, "eighteenth": 18, "nineteenth": 19, "twentieth": 20, "thirtieth": 30,
}  # fmt: skip
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
FULL = "january february march april may june july august september october november december".split()
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
PARTS = {
    "in the morning": range(12),
    "in the afternoon": range(12, 19),
    "in the evening": range(16, 24),
    "at night": [*range(18, 24), *range(6)],
}


def whole(words: list[str]) -> int | None:
    """A number in words, or in words and figures; None where it is none."""
    for unit, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if name in words:
            at = words.index(name)
            rest = words[at + 1 :]
            rest = rest[1:] if rest[:1] == ["and"] else rest
            head = 1 if words[:at] == ["a"] else whole(words[:at])
            tail = whole(rest) if rest else 0
            limit = 100 if unit == 100 else 1000
            return None if not head or head >= limit or tail is None or tail >= unit else head * unit + tail
    if len(words) == 2 and words[0] in TENS and 0 < SMALL.get(words[1], 99) < 10:
        return TENS[words[0]] + SMALL[words[1]]
    if len(words) == 1:
        return int(words[0]) if re.fullmatch(r"\d{1,3}", words[0]) else SMALL.get(words[0], TENS.get(words[0]))
    return None


def two_parts(words: list[str]) -> set[tuple[int, int]]:
    """All readings as two numbers, the second of two digits: "nineteen eighty four", "nine oh five"."""
    found = set()
    for at in range(1, len(words)):
        first, rest = whole(words[:at]), words[at:]
        second = whole(rest[1:]) if rest[0] == "oh" else whole(rest)
        small = rest[0] == "oh"
        if (
            first is not None
            and first < 100
            and second is not None
            and (1 <= second < 10 if small else 10 <= second < 100)
        ):
            found.add((first, second))
    return found


def years(text: str) -> set[int]:
    if re.fullmatch(r"\d{4}", text):
        return {int(text)}
    words = text.replace("-", " ").split()
    found = {whole(words)} | {first * 100 + second for first, second in two_parts(words)}
    return {year for year in found if year is not None and 1000 <= year < 3000}


def day_numbers(text: str) -> set[int]:
    if found := re.fullmatch(r"(\d{1,2})(st|nd|rd|th)?", text):
        return {int(found[1])}
    *before, last = text.replace("-", " ").split()
    if last not in ENDS or len(before) > 1:
        return set()
    if not before:
        return {ENDS[last]}
    return {TENS[before[0]] + ENDS[last]} if before[0] in TENS and ENDS[last] < 10 else set()


DAY = rf"(?P<d>(?:(?:twenty|thirty)[- ])?(?:{'|'.join(ENDS)})|\d{{1,2}}(?:st|nd|rd|th)?)"
MONTH, YEAR = rf"(?P<m>{'|'.join(FULL + MONTHS)})", r"(?:in the year |in )?(?P<y>[a-z0-9 -]+)"
DAYS = (
    rf"(?:the )?{DAY}(?: day)?(?: of)? {MONTH},? {YEAR}", rf"{MONTH} (?:the )?{DAY},? {YEAR}",
    rf"(?P<y>\d{{4}}) {MONTH} {DAY}", r"(?P<y>\d{4})[-/](?P<m>\d\d)[-/](?P<d>\d\d)",
    r"(?P<d>\d\d)\.(?P<m>\d\d)\.(?P<y>\d{4})", r"(?P<d>\d+)-(?P<m>[a-z]+)-(?P<y>\d{4})",
)  # fmt: skip


def days(text: str) -> set[str]:
    """All days that a text can mean; one with the wrong weekday means none."""
    said = re.match(rf"({'|'.join(WEEKDAYS + [name[:3] for name in WEEKDAYS])}),? ", text)
    text = text[said.end() :] if said else text
    found = set()
    for pattern in DAYS:
        if parts := re.fullmatch(pattern, text):
            name = parts["m"]
            names = FULL if name in FULL else MONTHS
            month = int(name) if name.isdigit() else names.index(name) + 1 if name in names else 0
            for d in day_numbers(parts["d"]):
                for y in years(parts["y"]):
                    try:
                        day = date(y, month, d)
                    except ValueError:
                        continue
                    if not said or WEEKDAYS[day.weekday()].startswith(said[1]):
                        found.add(day.isoformat())
    return found


def times(text: str) -> set[str]:
    """All times of day that a text can mean."""
    found = {(12, 0)} if text == "noon" else set()
    if parts := re.fullmatch(r"(\d\d)[:h](\d\d)|(\d\d)(\d\d) hours", text):
        found.add((int(parts[1] or parts[3]), int(parts[2] or parts[4])))
    if parts := re.fullmatch(r"(\d{1,2})(?::(\d\d))? ?([ap])\.?m\.?", text):
        found.add((int(parts[1]) % 12 + 12 * (parts[3] == "p"), int(parts[2] or 0)))
    if text.endswith(" hours"):
        words = text.removesuffix(" hours").replace("-", " ").split()
        words = words[1:] if words[0] == "oh" and words[1] != "zero" else words
        found |= two_parts(words)
        if words[-1] == "hundred" and whole(words[:-1]) is not None:
            found.add((whole(words[:-1]), 0))
    for part, hours in PARTS.items():
        if text.endswith(f" {part}"):
            for hour, minutes in twelve(text.removesuffix(f" {part}").replace("-", " ")):
                moments = [divmod((h * 60 + minutes) % 1440, 60) for h in (hour % 12, hour % 12 + 12)]
                found |= {moment for moment in moments if moment[0] in hours}
    return {f"{hour:02}:{minute:02}" for hour, minute in found if 0 <= hour < 24 and 0 <= minute < 60}


def twelve(text: str) -> set[tuple[int, int]]:
    """All readings as an hour from 1 to 12, and the minutes after it (before it: less than zero)."""
    found = set(two_parts(text.split()))
    found.add((whole(text.removesuffix(" o'clock").split()), 0))
    for word, sign in (("past", 1), ("to", -1)):
        before, _, after = text.partition(f" {word} ")
        before = re.sub(r" minutes?$", "", before)
        minutes = {"quarter": 15, "a quarter": 15, "half": 30}.get(before) or whole(before.split())
        if after and minutes:
            found.add((whole(after.split()), sign * minutes))
    return {(hour, minutes) for hour, minutes in found if hour is not None and 1 <= hour <= 12}


def moments(source: str) -> set[str]:
    """All readings of a source of the task "dates"."""
    source = source.lower()
    found = days(source) | times(source)
    for border in re.finditer(r", | at | on | ", source):
        left, right = source[: border.start()], source[border.end() :]
        found |= {f"{day} {time}" for day in days(left) for time in times(right)}
        found |= {f"{day} {time}" for time in times(left.removeprefix("at ")) for day in days(right)}
    return found


def numbers(source: str) -> set[str]:
    """All readings of a source of the task "numbers"."""
    unsigned = re.sub("^(minus|negative) ", "", source)
    sign = "-" if unsigned != source else ""
    body, _, spoken = unsigned.partition(" point ")
    tail = "".join(str(SMALL[word]) for word in spoken.split())
    if not spoken and re.search(r"\.\d+$", body):
        body, tail = body.split(".")
    found = {whole(body.replace("-", " ").split())}
    if re.fullmatch(r"\d{1,3}(,\d{3})+|\d{1,3}( \d{3})+", body):
        found.add(int(re.sub("[, ]", "", body)))
    return {f"{sign}{n}{'.' if tail else ''}{tail}" for n in found if n is not None}
