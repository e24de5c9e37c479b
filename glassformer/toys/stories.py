"""Generated stories: a grammar, a small world, and questions with known answers.

    One day Mia found a ball. Ben had a kite. Then Mia gave the ball to Ben. Ben hid the kite in Rome. Soon Mia ran
    to Oslo.
    Who has the ball? Ben.
    Where is the kite? Rome.

A story is a list of events. `StoryWorld` determines which events are possible and which facts hold after them; the
templates determine the text of an event or a question. Both are used in both directions: to generate stories, and to
parse (`parse_sentence`, `parse_question`) and replay the text of a model. Story i of a split is a pure function of
(seed, split, i), so that a corpus of any length can be streamed without storage.

A hash of the set of events decides the split of a story, and some pairs of nouns (who has what, what is where, who went
where) occur in the held-out split only. So no held-out story, in any words or order, and no question with its facts
occurs in training, and some pairs never occur together in training.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import NamedTuple
from zlib import crc32

from glassformer.errors import DataError

NOUNS = {
    "person": tuple("Mia Ben Sue Tom Ann Max Lily Sam Kim Leo Eva Jack Zoe Dan Amy Bob".split()),
    "thing": tuple("ball kite cup doll drum hat book pear cake lamp coin shell rope bell fish key".split()),
    "place": tuple("Rome Oslo Lima Paris Cairo Delhi Tokyo Milan Kyiv Quito Accra Bonn Lyon Pisa Bath York".split()),
}
OPENERS = ("One day", "Today", "Once", "This morning")
LINKS = ("", "", "", "Then", "Soon", "Later")

# Templates of each event. {a} is the person who acts, {b} the other person; slots as in `SLOTS`.
EVENTS = {
    "have": ("{a} had a {thing}", "{a} found a {thing}", "{a} got a {thing}"),
    "give": ("{a} gave the {thing} to {b}", "{a} handed the {thing} to {b}", "{a} passed the {thing} to {b}"),
    "put": tuple(f"{{a}} {verb} the {{thing}} in {{place}}" for verb in ("put", "hid", "left")),
    "take": ("{a} took the {thing} from {place}",),
    "walk": ("{a} went to {place}", "{a} walked to {place}", "{a} ran to {place}"),
}
# Each question: kind, template, answer. The slot that only the answer has is the value to find.
QUESTIONS = {
    "holder": ("who", "Who has the {thing}?", "{a}."),
    "held": ("what", "What does {a} have?", "The {thing}."),
    "inside": ("what", "What lies in {place}?", "The {thing}."),
    "kept": ("where", "Where is the {thing}?", "{place}."),
    "gone": ("where", "Where is {a}?", "{place}."),
}
KINDS = ("who", "what", "where")
SLOTS = {"a": "person", "b": "person", "thing": "thing", "place": "place"}
HELD_OUT_PAIR_MODULUS, HELD_OUT_STORY_MODULUS = (
    32,
    8,
)  # one pair of nouns, and one set of events, in this many is held out
SALT = 5  # of that hash; with it no noun has more than two held-out pairs of one sort
SPLITS = ("train", "held-out")


class Event(NamedTuple):
    """An event of a story. `kind` is a key of EVENTS; `to` is the other person or the place."""

    kind: str
    a: str
    thing: str
    to: str

    @property
    def pair(self) -> tuple[str, str]:
        """The two nouns that the event connects: who has what, what is where, or who went where."""
        if self.kind == "walk":
            return self.a, self.to
        return (self.to if self.kind in ("give", "put") else self.a), self.thing


class Question(NamedTuple):
    """A question as text, its answer (with the full stop), its kind, and the nouns of both."""

    prompt: str
    answer: str
    kind: str  # "who", "what" or "where"
    pair: tuple[str, str]  # as `Event.pair`


@dataclass(frozen=True)
class Story:
    """A story as text, the questions about it, and its events."""

    text: str
    questions: tuple[Question, ...]
    events: tuple[Event, ...]

    @property
    def document(self) -> str:
        """The training document: the story, then one line for each question with its answer."""
        return "\n".join([self.text, *(f"{q.prompt} {q.answer}" for q in self.questions)])


@dataclass(frozen=True)
class Level:
    """Minimum and maximum numbers of people, things, moves (give, put, take), walks and questions of a story."""

    people: tuple[int, int]
    things: tuple[int, int]
    moves: tuple[int, int]
    walks: tuple[int, int]
    questions: tuple[int, int]
    both_ways: bool = False  # whether two questions may be about one fact (who has it, and what that person has)


LEVELS = (
    Level(people=(2, 3), things=(2, 3), moves=(0, 0), walks=(0, 2), questions=(3, 8), both_ways=True),
    Level(people=(3, 4), things=(3, 3), moves=(1, 2), walks=(0, 3), questions=(3, 6)),
    Level(people=(3, 4), things=(3, 4), moves=(2, 4), walks=(1, 4), questions=(4, 6)),
)


@dataclass
class StoryWorld:
    """The facts of a story: the owner (a person or a place) of each thing, and the place each person has gone to."""

    owner: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)

    def violation(self, event: Event) -> str | None:
        """Return the reason why the event is impossible now; None where it is possible."""
        kind, a, thing, to = event
        if kind == "walk":
            return f"{a} is in {to} already" if self.gone.get(a) == to else None
        if a in self.gone:
            return f"{a} has gone to {self.gone[a]}"
        if kind == "have":
            return f"the {thing} is there already" if thing in self.owner else None
        if kind == "take":
            return None if self.owner.get(thing) == to else f"the {thing} is not in {to}"
        if self.owner.get(thing) != a:
            return f"{a} does not have the {thing}"
        if kind == "give" and (to == a or to in self.gone):
            return f"{to} is not there to be given the {thing}"
        return None

    def apply(self, event: Event) -> None:
        """Apply an event to the facts. Raises DataError with the reason where it is impossible."""
        if reason := self.violation(event):
            raise DataError(f"{render_event(event)}: {reason}")
        if event.kind == "walk":
            self.gone[event.a] = event.to
        else:
            self.owner[event.thing] = event.to if event.kind in ("give", "put") else event.a

    def facts(self) -> list[tuple[str, dict[str, str]]]:
        """Return the possible questions: the name in QUESTIONS, and the two nouns of question and answer.

        Questions with more than one answer (what Mia has, when she has two things) are excluded.
        """
        owners = list(self.owner.values())
        found = [("gone", {"a": a, "place": place}) for a, place in self.gone.items()]
        for thing, owner in self.owner.items():
            slot = "a" if owner in NOUNS["person"] else "place"
            words = {slot: owner, "thing": thing}
            found.append(("holder" if slot == "a" else "kept", words))
            if owners.count(owner) == 1:
                found.append(("held" if slot == "a" else "inside", words))
        return found


# --- the splits ---------------------------------------------------------------------------------------------------


@cache
def is_held_out_pair(one: str, other: str) -> bool:
    """Return whether a pair of nouns occurs in the held-out split only, by the hash of the two words."""
    return crc32(f"{one} {other} {SALT}".encode()) % HELD_OUT_PAIR_MODULUS == 0


def split_of(events: Iterable[Event]) -> str:
    """Return the split of all stories with these events, in any order and words."""
    if any(is_held_out_pair(*event.pair) for event in events):
        return "held-out"
    facts = " ".join(sorted("/".join(event) for event in events))
    return "held-out" if crc32(facts.encode()) % HELD_OUT_STORY_MODULUS == 0 else "train"


# --- parsing ---------------------------------------------------------------------------------------------------------


def _pattern(template: str) -> str:
    """Return a template as a regular expression: {a} becomes a group named a that matches any person, and so on."""
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(
        f"(?P<{part}>{'|'.join(NOUNS[SLOTS[part]])})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )


_EVENT_PATTERNS = [(kind, re.compile(_pattern(text))) for kind, texts in EVENTS.items() for text in texts]
_QUESTION_PATTERNS = [
    (name, re.compile(f"{_pattern(prompt)} (?P<answer>.*)")) for name, (_, prompt, _) in QUESTIONS.items()
]


def parse_sentence(sentence: str, *, first: bool) -> Event:
    """Return the event of a sentence of a story.

    sentence: with its full stop. first: whether it is the first of the story, which has other links before the clause.
    Raises DataError for a sentence outside the grammar.
    """
    links = OPENERS if first else LINKS
    for link in sorted(set(links), key=len, reverse=True):
        if sentence.startswith(link) and sentence.endswith("."):
            clause = sentence[len(link) : -1].removeprefix(" " if link else "")
            for kind, pattern in _EVENT_PATTERNS:
                if found := pattern.fullmatch(clause):
                    word = found.groupdict().get
                    return Event(kind, word("a", ""), word("thing", ""), word("b") or word("place", ""))
    raise DataError(f"not a sentence of the grammar: {sentence!r}")


def parse_question(line: str) -> tuple[str, dict[str, str], str]:
    """Return a question with answer as its name in QUESTIONS, the words of its slots, and the answer as text.

    Raises DataError for a line outside the grammar.
    """
    for name, pattern in _QUESTION_PATTERNS:
        if found := pattern.fullmatch(line):
            words = found.groupdict()
            return name, words, words.pop("answer")
    raise DataError(f"not a question of the grammar: {line!r}")


def split_story(document: str) -> tuple[list[str], list[str]]:
    """Return the sentences of a document's story (its first line), and the lines of its questions."""
    text, *lines = document.strip().split("\n")
    return re.findall(r"\S[^.]*\.?", text), lines


# --- generation ------------------------------------------------------------------------------------------------------


def render_event(event: Event, template: str | None = None) -> str:
    """Return the event as a clause, without link and full stop, by its first template or the given one."""
    words = {"a": event.a, "b": event.to, "thing": event.thing, "place": event.to}
    return (template or EVENTS[event.kind][0]).format_map(words)


def render_question(name: str, words: dict[str, str]) -> Question:
    """Return the question of a name in QUESTIONS, filled with words."""
    kind, prompt, answer = QUESTIONS[name]
    one, other = words.values()
    return Question(prompt.format_map(words), answer.format_map(words), kind, (one, other))


def answer_slot(name: str) -> str:
    """Return the slot of a question's answer that the question itself does not have."""
    _, _, answer = QUESTIONS[name]
    return re.findall(r"{(\w+)}", answer)[0]


def story(seed: int, split: str, i: int, level: int = -1) -> Story:
    """Return story i of a split ("train" or "held-out"), a function of the arguments alone.

    level: an index into LEVELS, from the shortest stories to the complete language (the default).
    Raises DataError for an unknown split or level.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not -len(LEVELS) <= level < len(LEVELS):
        raise DataError(f"level must be an index into the {len(LEVELS)} levels, got {level!r}")
    draw = RandomChoices(f"{seed}/{split}/{level % len(LEVELS)}/{i}")
    while (found := _try_story(draw, LEVELS[level], split)) is None:
        pass
    return found


def stories(seed: int, split: str, n: int, level: int = -1, start: int = 0) -> Iterator[Story]:
    """Yield stories start .. start + n - 1 of a split."""
    return (story(seed, split, i, level) for i in range(start, start + n))


def count_stories() -> int:
    """Return a lower bound of the number of different training stories of the last level.

    Counts only stories in which three people have a thing each, the first two put theirs away, and the third walks
    somewhere; for each choice only as many nouns as are allowed with the most restricted one; times less than the
    fraction of event sets in the training split.
    """

    def free(one: str, other: str) -> int:
        return min(sum(not is_held_out_pair(x, y) for y in NOUNS[other]) for x in NOUNS[one])

    owners = math.prod((len(NOUNS["person"]) - i) * (free("person", "thing") - i) for i in range(3))
    away = min(sum(not is_held_out_pair(place, thing) for place in NOUNS["place"]) for thing in NOUNS["thing"]) ** 2
    kinds = ("have", "have", "have", "put", "put", "walk")
    wordings = math.prod(len(EVENTS[kind]) for kind in kinds) * len(OPENERS) * len(set(LINKS)) ** (len(kinds) - 1)
    return owners * away * free("person", "place") * wordings * (HELD_OUT_STORY_MODULUS - 2) // HELD_OUT_STORY_MODULUS


class RandomChoices:
    """Random choices from `Random.random` alone, the only method whose values Python guarantees."""

    def __init__(self, seed: str):
        self.random = Random(seed).random

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def between(self, bounds: tuple[int, int]) -> int:
        return bounds[0] + self.below(bounds[1] - bounds[0] + 1)

    def one(self, items):
        return items[int(self.random() * len(items))]

    def some(self, items, n: int) -> list:
        items = list(items)
        return [items.pop(self.below(len(items))) for _ in range(min(n, len(items)))]


MOVES = ("give", "give", "put", "put", "put", "take")  # relative frequencies where possible


def _try_story(draw: RandomChoices, level: Level, split: str) -> Story | None:
    """Return a random story; None where no next event is possible in this split."""
    cast = draw.some(NOUNS["person"], draw.between(level.people))
    opening = len(cast) if level.both_ways else len(cast) - 1
    rest = ["have"] * (draw.between(level.things) - opening) + ["move"] * draw.between(level.moves)
    script = ["have"] * opening + draw.some(rest, len(rest)) + ["walk"] * draw.between(level.walks)
    world, events = StoryWorld(), []
    for n, kind in enumerate(script):
        actors = cast[n : n + 1] if n < opening else cast  # at the opening each person has one thing
        event = _next_event(draw, kind, actors, world, split)
        if event is None:
            return None
        world.apply(event)
        events.append(event)
    if split_of(events) != split:
        return None
    clauses = [render_event(event, draw.one(EVENTS[event.kind])) for event in events]
    links = [draw.one(OPENERS)] + [draw.one(LINKS) for _ in clauses[1:]]
    text = " ".join(f"{link} {clause}.".lstrip() for link, clause in zip(links, clauses, strict=True))
    facts = world.facts()
    facts = draw.some(facts, len(facts))
    if not level.both_ways:
        facts = list({tuple(words.values()): (name, words) for name, words in facts}.values())
    chosen = facts[: draw.between(level.questions)]
    if len(chosen) < level.questions[0]:
        return None
    return Story(text, tuple(render_question(*fact) for fact in chosen), tuple(events))


def _next_event(draw: RandomChoices, kind: str, cast: list[str], world: StoryWorld, split: str) -> Event | None:
    held = [t for t, owner in world.owner.items() if owner in NOUNS["person"]]
    placed = [t for t in world.owner if t not in held]
    for _ in range(40):
        move = draw.one(MOVES) if kind == "move" else kind
        if (move in ("give", "put") and not held) or (move == "take" and not placed):
            continue
        event = _PROPOSE[move](draw, cast, held, placed, world)
        if world.violation(event) is None and not (split == "train" and is_held_out_pair(*event.pair)):
            return event
    return None


def _give(draw, cast, held, placed, world):
    thing = draw.one(held)
    return Event("give", world.owner[thing], thing, draw.one(cast))


def _put(draw, cast, held, placed, world):
    thing = draw.one(held)
    return Event("put", world.owner[thing], thing, draw.one(NOUNS["place"]))


def _take(draw, cast, held, placed, world):
    thing = draw.one(placed)
    return Event("take", draw.one(cast), thing, world.owner[thing])


_PROPOSE = {
    "have": lambda draw, cast, *_: Event("have", draw.one(cast), draw.one(NOUNS["thing"]), ""),
    "give": _give,
    "put": _put,
    "take": _take,
    "walk": lambda draw, cast, *_: Event("walk", draw.one(cast), "", draw.one(NOUNS["place"])),
}
