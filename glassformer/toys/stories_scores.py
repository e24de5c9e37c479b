"""Scores of models of the stories: well-formed sentences, consistent stories, and correct answers.

Models and baselines are `Complete` functions from prompts to continuations, so that all are scored by the same code.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from glassformer.errors import DataError
from glassformer.toys import stories as corpus

Complete = Callable[[list[str], int], list[str]]
"""complete(prompts, max_tokens): return the continuation of each prompt, greedy where answers are scored."""

ANSWER_TOKENS = 8  # an answer has three words and a full stop, with tokens smaller than words


# --- generated text ---------------------------------------------------------------------------------------------------


def score_wellformed(texts: Iterable[str]) -> float:
    """Return the fraction of sentences and questions with answers that are in the grammar.

    texts: complete documents (a story on the first line, a question with its answer on each other line).
    An empty document counts as one sentence outside the grammar.
    """
    good = [ok for text in texts for ok in _wellformed(text)]
    return sum(good) / len(good) if good else 0.0


def _wellformed(text: str) -> Iterator[bool]:
    sentences, lines = corpus.split_story(text)
    if not sentences:
        yield False
    for i, sentence in enumerate(sentences):
        yield _parses(corpus.parse_sentence, sentence, first=i == 0)
    for line in lines:
        yield _parses(_parse_answered, line)


def _parses(parse: Callable, *args, **options) -> bool:
    try:
        parse(*args, **options)
    except DataError:
        return False
    return True


def _parse_answered(line: str) -> tuple[str, dict[str, str], str]:
    name, words, answer = corpus.parse_question(line)
    slot = corpus.answer_slot(name)
    nouns = corpus.NOUNS[corpus.SLOTS[slot]]
    if answer not in {corpus.render_question(name, words | {slot: noun}).answer for noun in nouns}:
        raise DataError(f"the answer does not fit the question: {line!r}")
    return name, words, answer


def replay(document: str) -> corpus.StoryWorld:
    """Apply all events of a document to a new world and check its answers; return the world.

    Raises DataError that names the first sentence outside the grammar, impossible event or wrong answer, and for a
    document without a story or without a question.
    """
    world = corpus.StoryWorld()
    sentences, lines = corpus.split_story(document)
    if not sentences or not lines:
        raise DataError("a document needs a story and at least one question")
    for i, sentence in enumerate(sentences):
        world.apply(corpus.parse_sentence(sentence, first=i == 0))
    truths = {(q.prompt, q.answer) for q in (corpus.render_question(*fact) for fact in world.facts())}
    for line in lines:
        name, words, answer = corpus.parse_question(line)
        prompt = corpus.QUESTIONS[name][1].format_map(words)
        if (prompt, answer) not in truths:
            raise DataError(f"the answer contradicts the story: {line!r}")
    return world


def score_consistent(texts: Iterable[str]) -> float:
    """Return the fraction of documents in which every event is possible and every answer true."""
    good = [_parses(replay, text) for text in texts]
    return sum(good) / len(good) if good else 0.0


# --- answers ----------------------------------------------------------------------------------------------------------


def score_answers(complete: Complete, n: int, *, seed: int = 0, split: str = "held-out", level: int = -1) -> dict:
    """Return the accuracy on the questions of n stories of a split.

    Each question follows its story alone; the first line of the continuation must equal the answer. The result has the
    accuracy by kind of question ("who", "what", "where"), over all ("all"), over those whose nouns never occur together
    in training ("new pairs"), and the number of questions ("asked"). A kind without questions is absent.
    """
    questions = [(story, q) for story in corpus.stories(seed, split, n, level) for q in story.questions]
    outputs = complete([f"{story.text}\n{q.prompt}" for story, q in questions], ANSWER_TOKENS)
    correct: dict[str, list[bool]] = {}
    for (_, q), text in zip(questions, outputs, strict=True):
        ok = text.strip().split("\n")[0] == q.answer
        for key in (q.kind, "all", *(("new pairs",) if corpus.is_held_out_pair(*q.pair) else ())):
            correct.setdefault(key, []).append(ok)
    return {key: sum(oks) / len(oks) for key, oks in correct.items()} | {"asked": len(questions)}


# --- baselines --------------------------------------------------------------------------------------------------------


def baselines(documents: Sequence[str]) -> dict[str, Complete]:
    """Return the three baselines without a model by name, trained on the documents of the model."""
    return {
        "majority answer": majority_answer(documents),
        "last-mentioned noun": last_mentioned_noun,
        "5-gram model": NGram(documents, order=5).complete,
    }


def _question(prompt: str) -> tuple[str, dict[str, str], str]:
    """Split a prompt into its question (name and words) and the story before it."""
    text, _, line = prompt.rpartition("\n")
    name, words, _ = corpus.parse_question(f"{line} ")
    return name, words, text


def majority_answer(documents: Iterable[str]) -> Complete:
    """Return a baseline that gives the most frequent answer to questions of the same form."""
    counts: dict[str, Counter[str]] = {}
    for document in documents:
        for line in corpus.split_story(document)[1]:
            name, _, answer = corpus.parse_question(line)
            counts.setdefault(name, Counter())[answer] += 1

    def complete(prompts: list[str], max_tokens: int) -> list[str]:
        return [counts[_question(prompt)[0]].most_common(1)[0][0] for prompt in prompts]

    return complete


def last_mentioned_noun(prompts: list[str], max_tokens: int) -> list[str]:
    """Answer with the last noun of the right kind (person, thing or place) in the story."""
    answers = []
    for prompt in prompts:
        name, words, text = _question(prompt)
        slot = corpus.answer_slot(name)
        nouns = corpus.NOUNS[corpus.SLOTS[slot]]
        last = next((word for word in reversed(re.findall(r"\w+", text)) if word in nouns), nouns[0])
        answers.append(corpus.render_question(name, words | {slot: last}).answer)
    return answers


class NGram:
    """An n-gram model of words: the most frequent next word after the longest known context ("stupid backoff").

    Brants et al. 2007, "Large Language Models in Machine Translation". Its tokens are words, full stops, question marks
    and line ends.
    """

    def __init__(self, documents: Iterable[str], order: int):
        self.order = order
        self.counts: dict[tuple[str, ...], Counter[str]] = {}
        for document in documents:
            words = [*self.words(document), "\n"]
            for i, word in enumerate(words):
                for n in range(min(i, order - 1) + 1):
                    self.counts.setdefault(tuple(words[i - n : i]), Counter())[word] += 1

    @staticmethod
    def words(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w ]", text)

    def next(self, words: list[str]) -> str:
        for n in range(self.order - 1, -1, -1):
            context = tuple(words[len(words) - n :])
            if len(context) == n and context in self.counts:
                return self.counts[context].most_common(1)[0][0]
        raise DataError("an n-gram model without training text cannot generate")

    def complete(self, prompts: list[str], max_tokens: int) -> list[str]:
        """Return the greedy continuation of each prompt up to the line end."""
        outputs = []
        for prompt in prompts:
            words = self.words(prompt)
            start = len(words)
            while len(words) < start + max_tokens and words[-1:] != ["\n"]:
                words.append(self.next(words))
            outputs.append(re.sub(r" (?=[^\w])", "", " ".join(words[start:])).strip())
        return outputs
