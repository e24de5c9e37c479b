"""Little stories without end, made by rule: a grammar, a small world, and questions whose answers are known exactly.

    One day Mia found a ball. Ben had a kite. Then Mia gave the ball to Ben. Ben hid the kite in the barn. Soon Mia ran
    to the park.
    Who has the ball? Ben.
    Where is the kite? In the barn.

A story is a list of events. The `World` says which events can happen and what is true after them; the templates say
how an event or a question reads. Both are used in both directions: to write stories, and to read (`parse_sentence`,
`parse_question`) and replay what a model wrote. Story i of a split is a pure function of (seed, split, i), so that a
corpus of any length streams and takes no storage.

Two sides: every pair that a fact joins (who has what, what lies where, who went where) is either for training or kept
for the held-out side, chosen by a hash (`kept_back`). A training story has no pair that is kept back, a held-out story
has no other: so no held-out story, no sentence of fact of one, and no question with its answer, occurs in training.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import NamedTuple
from zlib import crc32

from glassformer.errors import DataError

NOUNS = {
    "person": tuple("Mia Ben Sue Tom Ann Max Lily Sam Kim Leo Eva Jack Zoe Dan Amy Bob".split()),
    "thing": tuple("ball kite cup doll drum hat book pear cake lamp coin shell rope bell fish key".split()),
    "place": tuple("park shop barn shed zoo mill yard hall cave tent boat bus wood den hut school".split()),
}
OPENERS = ("One day", "Today", "Once", "This morning")
LINKS = ("", "", "", "Then", "Soon", "Later")

# How each event reads. {a} acts; {b} is the other person; the slots' names are those of `SLOTS`.
EVENTS = {
    "have": ("{a} had a {thing}", "{a} found a {thing}", "{a} got a {thing}"),
    "give": ("{a} gave the {thing} to {b}", "{a} handed the {thing} to {b}", "{a} passed the {thing} to {b}"),
    "put": ("{a} put the {thing} in the {place}", "{a} hid the {thing} in the {place}", "{a} left the {thing} in the {place}"),
    "take": ("{a} took the {thing} from the {place}",),
    "walk": ("{a} went to the {place}", "{a} walked to the {place}", "{a} ran to the {place}"),
}
# Each question: its kind, how it reads, its answer. The slot that only the answer has is what must be looked up.
QUESTIONS = {
    "holder": ("who", "Who has the {thing}?", "{a}."),
    "held": ("what", "What does {a} have?", "The {thing}."),
    "inside": ("what", "What lies in the {place}?", "The {thing}."),
    "kept": ("where", "Where is the {thing}?", "In the {place}."),
    "gone": ("where", "Where is {a}?", "In the {place}."),
}
KINDS = ("who", "what", "where")
SLOTS = {"a": "person", "b": "person", "thing": "thing", "place": "place"}
KEPT_BACK = 4  # one pair in this many is kept for the held-out side
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
    """A question as it stands in the text, its answer (with the full stop), and its kind: who, what or where."""

    prompt: str
    answer: str
    kind: str


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
    Level(people=(3, 4), things=(3, 4), moves=(2, 4), walks=(0, 4), questions=(4, 6)),
)


@dataclass
class World:
    """What is true: where each thing is (with a person or in a place), and where those who walked away have gone."""

    owner: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)

    def refusal(self, event: Event) -> str | None:
        """Why the event cannot happen now, or None if it can."""
        kind, a, thing, to = event
        if kind == "walk":
            return f"{a} is at the {to} already" if self.gone.get(a) == to else None
        if a in self.gone:
            return f"{a} has gone to the {self.gone[a]}"
        if kind == "have":
            return f"the {thing} is there already" if thing in self.owner else None
        if kind == "take":
            return None if self.owner.get(thing) == to else f"the {thing} is not in the {to}"
        if self.owner.get(thing) != a:
            return f"{a} does not have the {thing}"
        if kind == "give" and (to == a or to in self.gone):
            return f"{to} is not there to be given the {thing}"
        return None

    def apply(self, event: Event) -> None:
        """Let an event happen. Raises DataError, with the reason, where it cannot."""
        if refusal := self.refusal(event):
            raise DataError(f"{render_event(event)}: {refusal}")
        if event.kind == "walk":
            self.gone[event.a] = event.to
        else:
            self.owner[event.thing] = event.to if event.kind in ("give", "put") else event.a

    def facts(self) -> list[tuple[str, dict[str, str]]]:
        """Everything that can be asked: the question's name in QUESTIONS, and the words that fill it and its answer.

        A question is left out where it has more than one answer (what Mia has, when she has two things).
        """
        owners = list(self.owner.values())
        asked = [("gone", {"a": a, "place": place}) for a, place in self.gone.items()]
        for thing, owner in self.owner.items():
            slot = "a" if owner in NOUNS["person"] else "place"
            words = {"thing": thing, slot: owner}
            asked.append(("holder" if slot == "a" else "kept", words))
            if owners.count(owner) == 1:
                asked.append(("held" if slot == "a" else "inside", words))
        return asked


# --- the two sides ---------------------------------------------------------------------------------------------------


@cache
def kept_back(one: str, other: str) -> bool:
    """Whether a pair of nouns is kept for the held-out side: one in KEPT_BACK is.

    The hash of the words puts each list of nouns in an order; the two places in these orders decide, in such a way
    that every noun is kept back with equally many others, so that the answers of both sides stay balanced.
    """
    x, y = _rank(one), _rank(other)
    return (x + x // KEPT_BACK * y + y // KEPT_BACK) % KEPT_BACK == 0


@cache
def _rank(noun: str) -> int:
    nouns = next(nouns for nouns in NOUNS.values() if noun in nouns)
    return sorted(nouns, key=lambda word: crc32(word.encode())).index(noun)


# --- writing ---------------------------------------------------------------------------------------------------------


def render_event(event: Event, template: str | None = None) -> str:
    """The event as a clause, without link and full stop; by its kind's first template unless one is given."""
    words = {"a": event.a, "b": event.to, "thing": event.thing, "place": event.to}
    return (template or EVENTS[event.kind][0]).format_map(words)


def render_question(name: str, words: dict[str, str]) -> Question:
    """The question of that name in QUESTIONS, filled with words."""
    kind, prompt, answer = QUESTIONS[name]
    return Question(prompt.format_map(words), answer.format_map(words), kind)


def story(seed: int, split: str, i: int, level: int = -1) -> Story:
    """Story number i of a split ("train" or "held-out"): always the same for the same arguments.

    level: an index into LEVELS, from the shortest stories to the whole language (the default).
    Raises DataError for an unknown split or level.
    """
    if split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not -len(LEVELS) <= level < len(LEVELS):
        raise DataError(f"level must be an index into the {len(LEVELS)} levels, got {level!r}")
    draw = Draw(f"{seed}/{split}/{level % len(LEVELS)}/{i}")
    while (told := _tell(draw, LEVELS[level], split == "held-out")) is None:
        pass
    return told


def stories(seed: int, split: str, n: int, level: int = -1, start: int = 0) -> Iterator[Story]:
    """Stories start .. start + n - 1 of a split."""
    return (story(seed, split, i, level) for i in range(start, start + n))


class Draw:
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


def _tell(draw: Draw, level: Level, held_out: bool) -> Story | None:
    """One try at a story; None where the pairs of this side leave no event that can come next."""
    cast = draw.some(NOUNS["person"], draw.between(level.people))
    opening = len(cast) if level.both_ways else len(cast) - 1
    rest = ["have"] * (draw.between(level.things) - opening) + ["move"] * draw.between(level.moves)
    script = ["have"] * opening + draw.some(rest, len(rest)) + ["walk"] * draw.between(level.walks)
    world, events = World(), []
    for n, kind in enumerate(script):
        actors = cast[n : n + 1] if n < opening else cast  # those who come in at the opening have one thing each
        event = _next_event(draw, kind, actors, world, held_out)
        if event is None:
            return None
        world.apply(event)
        events.append(event)
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


def _next_event(draw: Draw, kind: str, cast: list[str], world: World, held_out: bool) -> Event | None:
    held = [t for t, owner in world.owner.items() if owner in NOUNS["person"]]
    placed = [t for t in world.owner if t not in held]
    for _ in range(40):
        move = draw.one(MOVES) if kind == "move" else kind
        if (move in ("give", "put") and not held) or (move == "take" and not placed):
            continue
        event = _PROPOSE[move](draw, cast, held, placed, world)
        if kept_back(*event.pair) == held_out and world.refusal(event) is None:
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
