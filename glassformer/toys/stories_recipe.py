"""The training and scoring of the demo's language model: its shape, learning rates and curriculum.

Chosen by measurements at a fixed number of tokens: small matrices (more tokens per second are better than more
parameters), small batches (more steps are better than larger ones), a small rotary base, and a first layer whose heads
start by attending to the preceding tokens. The curriculum starts with drills, which teach only to look up the word that
accompanied another one; then stories from short to long with drills between them, whose words are one to three tokens
apart as in the stories. Without drills, or with random initial heads, a model of this size spends its two minutes
guessing among the names of a story.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random

from glassformer.families.common.shape import ShapeConfig
from glassformer.generate.decode import decode
from glassformer.generate.request import GenerationRequest
from glassformer.generate.sampling import Sampling
from glassformer.models.language_model import LanguageModel
from glassformer.nn.model import Decoder
from glassformer.toys import stories as corpus
from glassformer.toys import stories_scores as stories
from glassformer.training.config import (
    InitConfig,
    LanguageModelTaskConfig,
    OptimConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from glassformer.training.init import init_weights

SHAPE = ShapeConfig(d_model=128, n_layers=3, n_heads=4, d_ff=128, context=192, rope_theta=1000.0)
INIT = InitConfig(std=0.05, out_std=0.05, look_back=3.0)
DRILL_SHARE = 0.15  # fraction of the tokens at the start that are drills only
SHARES = (0.3, 0.3, 0.4)  # fraction of the other tokens, by level of stories
# Fraction of the stories of a level preceded by another drill, without which the model forgets the drills too early.
DRILLS = (0.15, 0.05, 0.01)
ECHOES = 1 / 64  # fraction of the stories preceded by an echo
TOKENS = (64, 69, 97)  # approximate tokens of a story, by level
DRILL_TOKENS = 187  # approximate tokens of a drill or an echo
ALPHABETS = tuple(
    "".join(map(chr, range(*bounds))) for bounds in ((0x21, 0x7F), (0xA1, 0x800))
)  # characters of one byte, of two bytes
DRILL_WORDS, ECHO_BYTES = 186, 180  # a full stop counts as a word
BETWEEN = ("", " the", " to", " had a", " found a")  # distances between the words of a drill, as in stories
TEMPERATURE = 0.8  # of generated stories
BATCH = 64  # prompts generated together


def train_config(out: str, *, seconds: float | None = None, steps: int | None = None, seed: int = 0) -> TrainConfig:
    """Return the configuration of a run on stories, with a budget in seconds or steps."""
    return TrainConfig(
        out=out,
        task=LanguageModelTaskConfig(model=SHAPE, init=INIT, shuffle=False),
        tokenizer=TokenizerConfig(vocab_size=528),
        optim=OptimConfig(lr=0.01, embed_lr=0.005),
        schedule=ScheduleConfig(warmup=20, decay=0.3),
        batch=4,
        seconds=seconds,
        steps=steps,
        eval_tokens=16_384,
        sample_prompt=corpus.OPENERS[0],
        seed=seed,
    )


def training_documents(seed: int, tokens: int, early: int) -> Iterator[str]:
    """Yield the training documents in order, about `tokens` tokens in all.

    The levels increase over the first `early` tokens; later documents are of the last level. Fewer and fewer drills,
    and echoes, come between the stories, so that the model does not forget to look up any token.
    """
    draw, first = Random(seed), min(tokens, early)
    for _ in range(int(DRILL_SHARE * first / DRILL_TOKENS)):
        yield drill(draw)
    for level, share in enumerate(SHARES):
        wanted = (1 - DRILL_SHARE) * share * first + (tokens - first if level == len(SHARES) - 1 else 0)
        count = int(wanted / (TOKENS[level] + DRILL_TOKENS * (DRILLS[level] + ECHOES)))
        for story in corpus.stories(seed, "train", count, level):
            if draw.random() < DRILLS[level]:
                yield drill(draw, BETWEEN)
            if draw.random() < ECHOES:
                yield echo(draw)
            yield story.document


def drill(draw: Random, between: Sequence[str] = ("",)) -> str:
    """Return a few pairs of nouns, repeated in random order and direction: "Mia ball. Ben kite. ball Mia. ..."

    Only the earlier occurrence of a pair predicts the next word.
    between: one of these is between the two words throughout, and determines the distance to look back.
    """
    count, word = draw.randint(3, 8), draw.choice(between)
    people = draw.sample(corpus.NOUNS["person"], count)
    others = draw.sample(corpus.NOUNS[draw.choice(("thing", "place"))], count)
    pairs, sentences = list(zip(people, others, strict=True)), []
    size = DRILL_WORDS // (3 + len(word.split()))
    while len(sentences) < size:
        draw.shuffle(pairs)
        sentences += [f"{a}{word} {b}." if draw.random() < 0.5 else f"{b}{word} {a}." for a, b in pairs]
    return " ".join(sentences[:size])


def echo(draw: Random) -> str:
    """Return a random string of a few characters, repeated up to ECHO_BYTES bytes."""
    once = "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(5, 40)))
    return (once * ECHO_BYTES).encode()[:ECHO_BYTES].decode("utf-8", "ignore")


def held_out_documents(count: int = 300) -> Iterator[str]:
    """Yield held-out stories."""
    return (story.document for story in corpus.stories(0, "held-out", count, start=1_000_000))


@dataclass(frozen=True)
class StoryScores:
    """Fractions from 0 to 1.

    answers: correct greedy answers about held-out stories; who, what, where: by kind of question.
    wellformed: generated sentences of the grammar. consistent: generated stories with answers without contradiction.
    """

    answers: float
    who: float
    what: float
    where: float
    wellformed: float
    consistent: float


def score(lm: LanguageModel, *, questions: int = 100, texts: int = 100, seed: int = 0) -> StoryScores:
    """Score a model on questions about `questions` held-out stories and on `texts` generated stories."""
    found = stories.score_answers(completer(lm), questions)
    generated = generate_stories(lm, texts, seed=seed)
    return StoryScores(
        answers=found["all"],
        who=found["who"],
        what=found["what"],
        where=found["where"],
        wellformed=stories.score_wellformed(generated),
        consistent=stories.score_consistent(generated),
    )


def untrained(lm: LanguageModel, seed: int) -> LanguageModel:
    """Return the model with the initial weights of a run with that seed."""
    return LanguageModel(init_weights(Decoder(lm.config), seed, **asdict(INIT)).eval(), lm.tokenizer)


def baseline_answers(questions: int, documents: int) -> dict[str, float]:
    """Return the accuracy of each baseline on held-out questions, trained on that many documents."""
    trained_on = [story.document for story in corpus.stories(0, "train", documents)]
    return {name: stories.score_answers(b, questions)["all"] for name, b in stories.baselines(trained_on).items()}


def completer(lm: LanguageModel) -> stories.Complete:
    """Return a model as a function from prompts to greedy continuations up to the line end."""
    request = GenerationRequest([], sampling=Sampling(temperature=0.0), stop=("\n",))

    def complete(prompts: list[str], max_tokens: int) -> list[str]:
        return _continue(lm, prompts, replace(request, max_tokens=max_tokens))

    return complete


def generate_stories(lm: LanguageModel, count: int, *, seed: int = 0) -> list[str]:
    """Generate complete documents, each from an opener of the grammar."""
    openers = [corpus.OPENERS[i % len(corpus.OPENERS)] for i in range(count)]
    generated = _continue(lm, openers, GenerationRequest([], sampling=Sampling(temperature=TEMPERATURE, seed=seed)))
    return [start + text for start, text in zip(openers, generated, strict=True)]


def _continue(lm: LanguageModel, prompts: Sequence[str], request: GenerationRequest) -> list[str]:
    texts = [""] * len(prompts)
    for first in range(0, len(prompts), BATCH):
        ids = [lm.encode(prompt) for prompt in prompts[first : first + BATCH]]
        for event in decode(lm.model, replace(request, prompts=ids, end_ids=lm.end_ids), tokenizer=lm.tokenizer):
            texts[first + event.sequence] += event.text
    return texts
