"""Little stories without end, made by rule: a grammar, a small world, and questions whose answers are known exactly.

    One day Mia found a ball. Ben had a kite. Then Mia gave the ball to Ben. Ben hid the kite in Rome. Soon Mia ran
    to Oslo.
    Who has the ball? Ben.
    Where is the kite? Rome.

A story is a list of events. The `World` says which events can happen and what is true after them; the templates say
how an event or a question reads. Both are used in both directions: to write stories, and to read (`parse_sentence`,
`parse_question`) and replay what a model wrote. Story i of a split is a pure function of (seed, split, i), so that a
corpus of any length streams and takes no storage.

Two sides: what happens in a story (the set of its events, by a hash) decides which split it belongs to, and some pairs
of nouns (who has what, what lies where, who went where) are kept for the held-out side alone. So no held-out story, in
whatever words or order, and no question with its facts, occurs in training, and some pairs were never seen together.
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

# How each event reads. {a} acts; {b} is the other person; the slots' names are those of `SLOTS`.
EVENTS = {
    "have": ("{a} had a {thing}", "{a} found a {thing}", "{a} got a {thing}"),
    "give": ("{a} gave the {thing} to {b}", "{a} handed the {thing} to {b}", "{a} passed the {thing} to {b}"),
    "put": tuple(f"{{a}} {verb} the {{thing}} in {{place}}" for verb in ("put", "hid", "left")),
    "take": ("{a} took the {thing} from {place}",),
    "walk": ("{a} went to {place}", "{a} walked to {place}", "{a} ran to {place}"),
}
# Each question: its kind, how it reads, its answer. The slot that only the answer has is what must be looked up.
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
)  # one pair of nouns, and one set of events, in this many is for the held-out side
SALT = 5  # of that hash: with this one, no noun has more than two of its pairs of one sort kept back
SPLITS = ("train", "held-out")


class Event(NamedTuple):
    """Something that happens: `kind` is a key of EVENTS; `to` is the other person or the place."""

    kind: str
    a: str
    thing: str
    to: str

    @property
    def pair(self) -> tuple[str, str]:
        """The two nouns that the event joins: who has what, what lies where, or who went where."""
        if self.kind == "walk":
            return self.a, self.to
        return (self.to if self.kind in ("give", "put") else self.a), self.thing


class Question(NamedTuple):
    """A question as it stands in the text, its answer (with the full stop), its kind, and the nouns of both."""

    prompt: str
    answer: str
    kind: str  # "who", "what" or "where"
    pair: tuple[str, str]  # as `Event.pair`: who has what, what lies where, or who went where


@dataclass(frozen=True)
class Story:
    """A story, the questions asked about it, and the events that it tells."""

    text: str
    questions: tuple[Question, ...]
    events: tuple[Event, ...]

    @property
    def document(self) -> str:
        """The whole text that is trained on: the story, then one line for each question and its answer."""
        return "\n".join([self.text, *(f"{q.prompt} {q.answer}" for q in self.questions)])


@dataclass(frozen=True)
class Level:
    """How much happens in a story: least and most people, things, moves (give, put, take), walks, and questions."""

    people: tuple[int, int]
    things: tuple[int, int]
    moves: tuple[int, int]
    walks: tuple[int, int]
    questions: tuple[int, int]
    both_ways: bool = False  # whether one fact may be asked for twice (who has it, and what that person has)


LEVELS = (
    Level(people=(2, 3), things=(2, 3), moves=(0, 0), walks=(0, 2), questions=(3, 8), both_ways=True),
    Level(people=(3, 4), things=(3, 3), moves=(1, 2), walks=(0, 3), questions=(3, 6)),
    Level(people=(3, 4), things=(3, 4), moves=(2, 4), walks=(1, 4), questions=(4, 6)),
)


@dataclass
class StoryWorld:
    """What is true: where each thing is (with a person or in a place), and where those who walked away have gone."""

    owner: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)

    def violation(self, event: Event) -> str | None:
        """Why the event cannot happen now, or None if it can."""
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
        """Let an event happen. Raises DataError, with the reason, where it cannot."""
        if refusal := self.violation(event):
            raise DataError(f"{render_event(event)}: {refusal}")
        if event.kind == "walk":
            self.gone[event.a] = event.to
        else:
            self.owner[event.thing] = event.to if event.kind in ("give", "put") else event.a

    def facts(self) -> list[tuple[str, dict[str, str]]]:
        """Everything that can be asked: the question's name in QUESTIONS, and the two nouns of question and answer.

        A question is left out where it has more than one answer (what Mia has, when she has two things).
        """
        owners = list(self.owner.values())
        asked = [("gone", {"a": a, "place": place}) for a, place in self.gone.items()]
        for thing, owner in self.owner.items():
            slot = "a" if owner in NOUNS["person"] else "place"
            words = {slot: owner, "thing": thing}
            asked.append(("holder" if slot == "a" else "kept", words))
            if owners.count(owner) == 1:
                asked.append(("held" if slot == "a" else "inside", words))
        return asked


# --- the two sides ---------------------------------------------------------------------------------------------------


@cache
def is_held_out_pair(one: str, other: str) -> bool:
    """Whether a pair of nouns is kept for the held-out side alone, by the hash of the two words."""
    return crc32(f"{one} {other} {SALT}".encode()) % HELD_OUT_PAIR_MODULUS == 0


def split_of(events: Iterable[Event]) -> str:
    """The split that stories of these events belong to, in whatever order and words they are told."""
    if any(is_held_out_pair(*event.pair) for event in events):
        return "held-out"
    facts = " ".join(sorted("/".join(event) for event in events))
    return "held-out" if crc32(facts.encode()) % HELD_OUT_STORY_MODULUS == 0 else "train"


# --- reading ---------------------------------------------------------------------------------------------------------


def _pattern(template: str) -> str:
    """A template as a regular expression: {a} becomes a group named a that matches any person, and so on."""
    pieces = re.split(r"\{(\w+)\}", template)
    return "".join(
        f"(?P<{piece}>{'|'.join(NOUNS[SLOTS[piece]])})" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)
    )


_EVENT_PATTERNS = [(kind, re.compile(_pattern(text))) for kind, texts in EVENTS.items() for text in texts]
_QUESTION_PATTERNS = [
    (name, re.compile(f"{_pattern(prompt)} (?P<answer>.*)")) for name, (_, prompt, _) in QUESTIONS.items()
]


def parse_sentence(sentence: str, *, first: bool) -> Event:
    """The event that a sentence of a story tells, read by the templates that write it.

    sentence: with its full stop. first: whether it opens the story (the links before the clause differ).
    Raises DataError for anything that the grammar does not make.
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
    """A line that asks and answers: the question's name in QUESTIONS, the words it is filled with, and the answer.

    The answer is given as it stands. Raises DataError for a line that is no question of the grammar.
    """
    for name, pattern in _QUESTION_PATTERNS:
        if found := pattern.fullmatch(line):
            words = found.groupdict()
            return name, words, words.pop("answer")
    raise DataError(f"not a question of the grammar: {line!r}")


def split_story(document: str) -> tuple[list[str], list[str]]:
    """The sentences of a document's story (its first line), and the lines of its questions."""
    text, *lines = document.strip().split("\n")
    return re.findall(r"\S[^.]*\.?", text), lines


# --- writing ---------------------------------------------------------------------------------------------------------


def render_event(event: Event, template: str | None = None) -> str:
    """The event as a clause, without link and full stop; by its kind's first template unless one is given."""
    words = {"a": event.a, "b": event.to, "thing": event.thing, "place": event.to}
    return (template or EVENTS[event.kind][0]).format_map(words)


def render_question(name: str, words: dict[str, str]) -> Question:
    """The question of that name in QUESTIONS, filled with words."""
    kind, prompt, answer = QUESTIONS[name]
    one, other = words.values()
    return Question(prompt.format_map(words), answer.format_map(words), kind, (one, other))


def answer_slot(name: str) -> str:
    """The slot that the answer to that question in QUESTIONS fills, and the question does not."""
    _, _, answer = QUESTIONS[name]
    return re.findall(r"{(\w+)}", answer)[0]


def story(seed: int, split: str, i: int, level: int = -1) -> Story:
    """Story number i of a split ("train" or "held-out"): always the same for the same arguments.

    level: an index into LEVELS, from the shortest stories to the whole language (the default).
    Raises DataError for an unknown split or level.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not -len(LEVELS) <= level < len(LEVELS):
        raise DataError(f"level must be an index into the {len(LEVELS)} levels, got {level!r}")
    draw = RandomChoices(f"{seed}/{split}/{level % len(LEVELS)}/{i}")
    while (told := _tell(draw, LEVELS[level], split)) is None:
        pass
    return told


def stories(seed: int, split: str, n: int, level: int = -1, start: int = 0) -> Iterator[Story]:
    """Stories start .. start + n - 1 of a split."""
    return (story(seed, split, i, level) for i in range(start, start + n))


def count_stories() -> int:
    """A lower bound of how many different training stories there are, of the last level.

    Counts only those in which three people come in with a thing each, the first two put theirs away, and the third
    walks somewhere; for each choice only as many nouns as the one with the fewest is free to be joined with; and, of
    these, less than the share that the hash of events leaves to training.
    """

    def free(one: str, other: str) -> int:
        return min(sum(not is_held_out_pair(x, y) for y in NOUNS[other]) for x in NOUNS[one])

    owners = math.prod((len(NOUNS["person"]) - i) * (free("person", "thing") - i) for i in range(3))
    away = min(sum(not is_held_out_pair(place, thing) for place in NOUNS["place"]) for thing in NOUNS["thing"]) ** 2
    kinds = ("have", "have", "have", "put", "put", "walk")
    wordings = math.prod(len(EVENTS[kind]) for kind in kinds) * len(OPENERS) * len(set(LINKS)) ** (len(kinds) - 1)
    return owners * away * free("person", "place") * wordings * (HELD_OUT_STORY_MODULUS - 2) // HELD_OUT_STORY_MODULUS


class RandomChoices:
    """Random choices from `Random.random` alone, the one method whose values Python promises to keep."""

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


MOVES = ("give", "give", "put", "put", "put", "take")  # how often each comes, where it can


def _tell(draw: RandomChoices, level: Level, split: str) -> Story | None:
    """One try at a story; None where the pairs of this side leave no event that can come next."""
    cast = draw.some(NOUNS["person"], draw.between(level.people))
    opening = len(cast) if level.both_ways else len(cast) - 1
    rest = ["have"] * (draw.between(level.things) - opening) + ["move"] * draw.between(level.moves)
    script = ["have"] * opening + draw.some(rest, len(rest)) + ["walk"] * draw.between(level.walks)
    world, events = StoryWorld(), []
    for n, kind in enumerate(script):
        actors = cast[n : n + 1] if n < opening else cast  # those who come in at the opening have one thing each
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
