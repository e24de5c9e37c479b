"""Test the generated stories, their parser, the split, and the scores."""

import random
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glassformer.errors import DataError
from glassformer.toys import stories as corpus
from glassformer.toys import stories_scores as stories

MANY = 4000
FIRST = (
    "One day Bob found a lamp. Soon Kim found a drum. Max got a doll. Then Kim left the drum in Lima. "
    "Max handed the doll to Bob. Bob had a fish. Soon Kim walked to Cairo.\n"
    "Who has the lamp? Bob.\n"
    "Where is the drum? Lima.\n"
    "Who has the doll? Bob.\n"
    "Who has the fish? Bob."
)
EVERYWHERE = pytest.mark.parametrize("split", corpus.SPLITS)


@pytest.fixture(scope="module")
def generated() -> dict[str, list[corpus.Story]]:
    return {split: list(corpus.stories(0, split, MANY)) for split in corpus.SPLITS}


def test_imports_no_torch():
    program = "import sys, glassformer.toys.stories_scores; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# --- one story --------------------------------------------------------------------------------------------------------


def test_story_is_a_pure_function_of_its_number(generated):
    assert [corpus.story(0, "train", i) for i in (7, 3)] == [generated["train"][i] for i in (7, 3)]
    assert list(corpus.stories(0, "train", 2, start=3)) == generated["train"][3:5]
    assert corpus.story(1, "train", 3).text != generated["train"][3].text
    assert corpus.story(0, "train", 3, level=-1) == corpus.story(0, "train", 3, level=len(corpus.LEVELS) - 1)


def test_stories_have_fixed_hashes():
    assert corpus.story(0, "train", 0).document == FIRST


@EVERYWHERE
@pytest.mark.parametrize("level", range(len(corpus.LEVELS)))
def test_sentences_parse_back_to_their_events(split, level):
    for i in range(300):
        story = corpus.story(5, split, i, level)
        sentences, lines = corpus.split_story(story.document)
        events = [corpus.parse_sentence(sentence, first=n == 0) for n, sentence in enumerate(sentences)]
        assert tuple(events) == story.events
        assert lines == [f"{q.prompt} {q.answer}" for q in story.questions]
        assert len({q.prompt for q in story.questions}) == len(story.questions)
        least, most = corpus.LEVELS[level].questions
        assert least <= len(story.questions) <= most
        stories.replay(story.document)


@pytest.mark.parametrize(("split", "level"), [("test", 0), ("train", 3), ("train", -4)])
def test_unknown_split_or_level_raises_data_error(split, level):
    with pytest.raises(DataError, match=re.escape(repr(split if split == "test" else level))):
        corpus.story(0, split, 0, level)


def test_count_stories_is_above_a_billion(generated):
    assert corpus.count_stories() >= 10**9
    assert len({story.text for story in generated["train"]}) == MANY


def test_every_noun_is_drawn_once_and_takes_the_article_a():
    nouns = [noun for kind in corpus.NOUNS.values() for noun in kind]
    assert len(set(nouns)) == len(nouns)
    assert not [thing for thing in corpus.NOUNS["thing"] if thing[0] in "aeiou"]


# --- two sides --------------------------------------------------------------------------------------------------------


def test_no_held_out_story_and_no_question_with_its_facts_occurs_in_training(generated):
    train = generated["train"] + [s for level in (0, 1) for s in corpus.stories(0, "train", MANY, level)]
    train += list(corpus.stories(9, "train", MANY, 0))
    held_out = generated["held-out"] + list(corpus.stories(0, "held-out", MANY, 0))
    facts = [{frozenset(story.events) for story in side} for side in (train, held_out)]
    assert not facts[0] & facts[1]
    kept = {q.pair for story in held_out for q in story.questions if corpus.is_held_out_pair(*q.pair)}
    pairs = {event.pair for story in train for event in story.events}
    assert kept
    assert not any(corpus.is_held_out_pair(*pair) for pair in pairs)
    assert {type(noun) for noun in kept.pop()} == {str}
    assert {frozenset(pair) for pair in kept}.isdisjoint(frozenset(pair) for pair in pairs)


def test_short_stories_would_overlap_without_the_split():
    """The test above can fail: the same facts do come again where stories are short."""
    sets = [frozenset(story.events) for story in corpus.stories(0, "train", MANY, 0)]
    again = {frozenset(story.events) for story in corpus.stories(0, "train", MANY, 0, start=MANY)}
    assert again & set(sets)


def test_split_does_not_depend_on_order_or_words(generated):
    for story in generated["held-out"][:200]:
        assert corpus.split_of(reversed(story.events)) == "held-out"


@EVERYWHERE
def test_answers_are_balanced(generated, split):
    answers: dict[str, Counter[str]] = {}
    for story in generated[split]:
        for q in story.questions:
            answers.setdefault(q.kind, Counter())[q.answer] += 1
    assert set(answers) == set(corpus.KINDS)
    total = sum(map(Counter.total, answers.values()))
    for counted in answers.values():
        assert counted.total() > 0.2 * total
        assert len(counted) == 16
        assert max(counted.values()) / counted.total() < 1 / 16 + 0.06


# --- the world and the grammar ----------------------------------------------------------------------------------------

EVENT = st.builds(
    corpus.Event,
    st.sampled_from(["have", "give", "put", "take", "walk"]),
    st.sampled_from(corpus.NOUNS["person"][:3]),
    st.sampled_from(corpus.NOUNS["thing"][:3]),
    st.sampled_from(corpus.NOUNS["person"][:3] + corpus.NOUNS["place"][:3]),
)


@given(st.lists(EVENT, max_size=30))
def test_world_invariants_hold_under_random_events(tries):
    world = corpus.StoryWorld()
    for event in tries:
        before = dict(world.owner), dict(world.gone)
        person = event.to in corpus.NOUNS["person"]
        if person != (event.kind == "give") and event.kind != "have":
            continue
        if world.violation(event):
            with pytest.raises(DataError):
                world.apply(event)
            assert (world.owner, world.gone) == before
        else:
            world.apply(event)
            joined = world.gone if event.kind == "walk" else world.owner
            assert event.pair in {*joined.items(), *((owner, thing) for thing, owner in joined.items())}
    prompts = [q.prompt for q in (corpus.render_question(*fact) for fact in world.facts())]
    assert len(set(prompts)) == len(prompts)


GOOD = "One day Mia had a ball. Then Ben found a kite. Mia gave the ball to Ben. Ben hid the kite in Rome.\n"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (GOOD + "Who has the ball? Ben.", None),
        (GOOD + "Where is the kite? Rome.\nWhat does Ben have? The ball.", None),
        (GOOD + "Who has the ball? Mia.", "contradicts the story"),
        (GOOD + "Where is the kite? Oslo.", "contradicts the story"),
        (GOOD + "What does Mia have? The ball.", "contradicts the story"),
        (GOOD + "Who has the ball? Ben", "contradicts the story"),
        (GOOD, "at least one question"),
        ("", "at least one question"),
        (GOOD.replace("Ben hid", "Mia hid") + "Who has the ball? Ben.", "Mia does not have the kite"),
        (GOOD.replace("to Ben", "to Mia") + "Who has the ball? Mia.", "Mia is not there to be given"),
        (GOOD.replace("hid", "ate") + "Who has the ball? Ben.", "not a sentence"),
        (GOOD.replace("One day ", "") + "Who has the ball? Ben.", "not a sentence"),
        (GOOD + "Who wants the ball? Ben.", "not a question"),
        ("Once Mia ran to Oslo. Mia had a cup.\nWho has the cup? Mia.", "Mia has gone to Oslo"),
        ("Once Mia had a cup. Ben had a cup.\nWho has the cup? Mia.", "is there already"),
        ("Once Mia had a cup. Ben took the cup from Rome.\nWho has the cup? Ben.", "not in Rome"),
    ],
)
def test_replay_accepts_true_stories_and_rejects_false_ones(document, reason):
    if reason is None:
        stories.replay(document)
    else:
        with pytest.raises(DataError, match=reason):
            stories.replay(document)
    assert stories.score_consistent([document]) == (reason is None)


def test_wellformed_counts_sentences_and_question_lines():
    text = "One day Mia had a ball. Mia had ball. Ben ran to Oslo.\nWho has the ball? Mia.\nWho has the ball? The cup."
    assert stories.score_wellformed([text]) == 3 / 5
    assert stories.score_wellformed([text, ""]) == 3 / 6
    assert stories.score_wellformed(["One day Mia had a ball"]) == 0
    assert stories.score_wellformed([]) == 0


def test_wellformed_notices_words_out_of_place(generated):
    draw = random.Random(0)
    for story in generated["train"][:200]:
        words = story.text.split(" ")
        at = draw.randrange(len(words) - 1)
        words[at], words[at + 1] = words[at + 1], words[at]
        if words != story.text.split(" "):
            assert stories.score_wellformed([" ".join(words)]) < 1


# --- answers ----------------------------------------------------------------------------------------------------------


def test_score_answers_uses_the_first_line_only(generated):
    truth = {f"{s.text}\n{q.prompt}": q.answer for s in generated["held-out"] for q in s.questions}

    def knows(prompts, max_tokens):
        return [f" {truth[prompt]}\nWho has the moon? Mia." for prompt in prompts]

    scores = stories.score_answers(knows, 100)
    assert set(scores) == {"who", "what", "where", "all", "new pairs", "asked"}
    assert {scores[key] for key in scores if key != "asked"} == {1.0}
    assert stories.score_answers(lambda prompts, n: [truth[p] + "." for p in prompts], 20)["all"] == 0


def test_baselines_answer_at_most_two_of_five_questions(generated):
    documents = [story.document for story in generated["train"]]
    scores = {name: stories.score_answers(b, 400) for name, b in stories.baselines(documents).items()}
    assert len(scores) == 3
    for name, by_kind in scores.items():
        assert 0.02 < by_kind["all"] <= 0.40, (name, by_kind)
    assert scores["last-mentioned noun"]["all"] > 0.2


def test_ngram_backs_off_to_the_longest_known_context():
    model = stories.NGram(["a b c d.", "x b c e.", "x b c e."], order=3)
    assert model.complete(["x b c"], 1) == ["e"]
    assert model.complete(["a b"], 8) == ["c e."]
    assert stories.NGram(["a b c d.", "x b c e.", "x b c e."], order=4).complete(["a b"], 8) == ["c d."]
    assert model.complete(["q"], 1) != [""]
