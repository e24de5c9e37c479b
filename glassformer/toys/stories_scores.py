"""What a model has learned of the stories, measured: well-formed, consistent, and right.

Whatever writes is a `Complete`: a function from prompts to what follows them. A model is one, and so is each baseline
that a model must leave behind, so that all are measured by the same lines.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from glassformer.errors import DataError
from glassformer.toys import stories as corpus

Complete = Callable[[list[str], int], list[str]]
"""complete(prompts, max_tokens): for each prompt the text that follows it (greedily, where answers are scored)."""

ANSWER_TOKENS = 8  # an answer has three words and a full stop; the rest is room for tokens smaller than words


# --- what is written --------------------------------------------------------------------------------------------------


def score_wellformed(texts: Iterable[str]) -> float:
    """The share, from 0 to 1, of sentences and questions with answers that the grammar could have written.

    texts: whole documents (a story on the first line, a question with its answer on each of the others).
    An empty document counts as one sentence that is not well-formed.
    """
    good = [ok for text in texts for ok in _wellformed(text)]
    return sum(good) / len(good) if good else 0.0


def _wellformed(text: str) -> Iterator[bool]:
    sentences, lines = corpus.split_story(text)
    if not sentences:
        yield False
    for i, sentence in enumerate(sentences):
        yield _reads(corpus.parse_sentence, sentence, first=i == 0)
    for line in lines:
        yield _reads(_answered, line)


def _reads(parse: Callable, *args, **options) -> bool:
    try:
        parse(*args, **options)
    except DataError:
        return False
    return True


def _answered(line: str) -> tuple[str, dict[str, str], str]:
    name, words, answer = corpus.parse_question(line)
    slot = corpus.answer_slot(name)
    nouns = corpus.NOUNS[corpus.SLOTS[slot]]
    if answer not in {corpus.render_question(name, words | {slot: noun}).answer for noun in nouns}:
        raise DataError(f"not an answer to that kind of question: {line!r}")
    return name, words, answer


def replay(document: str) -> corpus.StoryWorld:
    """Let everything that a document tells happen in a new world, and check its answers against it.

    Raises DataError, naming the sentence and the reason, at the first that is not of the grammar, cannot happen where
    it stands, or is answered wrongly; and for a document without a story or without a question.
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
            raise DataError(f"not what the story says: {line!r}")
    return world


def score_consistent(texts: Iterable[str]) -> float:
    """The share, from 0 to 1, of documents that replay from end to end: every event possible, every answer true."""
    good = [_reads(replay, text) for text in texts]
    return sum(good) / len(good) if good else 0.0


# --- what is answered -------------------------------------------------------------------------------------------------


def score_answers(complete: Complete, n: int, *, seed: int = 0, split: str = "held-out", level: int = -1) -> dict:
    """The share, from 0 to 1, of questions answered exactly right, over n stories that `split` names.

    Each question is put alone after its story, and the first line of what follows must be the answer. Returns the
    share by kind of question ("who", "what", "where"), over all ("all"), over those whose pair of nouns never stood
    together in training ("new pairs"), and how many were asked ("asked"). A kind that was never asked is left out.
    """
    asked = [(told, q) for told in corpus.stories(seed, split, n, level) for q in told.questions]
    written = complete([f"{told.text}\n{q.prompt}" for told, q in asked], ANSWER_TOKENS)
    right: dict[str, list[bool]] = {}
    for (_, q), text in zip(asked, written, strict=True):
        ok = text.strip().split("\n")[0] == q.answer
        for key in (q.kind, "all", *(("new pairs",) if corpus.is_held_out_pair(*q.pair) else ())):
            right.setdefault(key, []).append(ok)
    return {key: sum(oks) / len(oks) for key, oks in right.items()} | {"asked": len(asked)}


# --- baselines --------------------------------------------------------------------------------------------------------


def baselines(documents: Sequence[str]) -> dict[str, Complete]:
    """The three baselines that need no model, by name, trained on the documents that the model is trained on."""
    return {
        "majority answer": majority_answer(documents),
        "last-mentioned noun": last_mentioned_noun,
        "5-gram model": NGram(documents, order=5).complete,
    }


def _question(prompt: str) -> tuple[str, dict[str, str], str]:
    """A prompt's question (its name and words), and the story before it."""
    text, _, line = prompt.rpartition("\n")
    name, words, _ = corpus.parse_question(f"{line} ")
    return name, words, text


def majority_answer(documents: Iterable[str]) -> Complete:
    """Answers every question with the answer that questions of its form have most often in the documents."""
    counts: dict[str, Counter[str]] = {}
    for document in documents:
        for line in corpus.split_story(document)[1]:
            name, _, answer = corpus.parse_question(line)
            counts.setdefault(name, Counter())[answer] += 1

    def complete(prompts: list[str], max_tokens: int) -> list[str]:
        return [counts[_question(prompt)[0]].most_common(1)[0][0] for prompt in prompts]

    return complete


def last_mentioned_noun(prompts: list[str], max_tokens: int) -> list[str]:
    """Answers with the last noun of the right kind (person, thing or place) in the story."""
    answers = []
    for prompt in prompts:
        name, words, text = _question(prompt)
        slot = corpus.answer_slot(name)
        nouns = corpus.NOUNS[corpus.SLOTS[slot]]
        last = next((word for word in reversed(re.findall(r"\w+", text)) if word in nouns), nouns[0])
        answers.append(corpus.render_question(name, words | {slot: last}).answer)
    return answers


class NGram:
    """An n-gram model of words: the likeliest next word after the longest context that was seen ("stupid backoff").

    Brants et al. 2007, "Large Language Models in Machine Translation". Words, full stops, question marks and line
    ends are its tokens.
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
        raise DataError("an n-gram model that was trained on no text cannot write")

    def complete(self, prompts: list[str], max_tokens: int) -> list[str]:
        """What follows each prompt, greedily, up to the end of the line."""
        written = []
        for prompt in prompts:
            words = self.words(prompt)
            begun = len(words)
            while len(words) < begun + max_tokens and words[-1:] != ["\n"]:
                words.append(self.next(words))
            written.append(re.sub(r" (?=[^\w])", "", " ".join(words[begun:])).strip())
        return written
