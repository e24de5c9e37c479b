"""How the demonstration's model is trained and scored: its shape, its rates, and what it reads in which order.

Found by measuring, at a fixed number of tokens: small matrices (more tokens a second beat more parameters), small
batches (more steps beat larger ones), a small rotary base; a first layer whose heads begin by looking at the tokens
just before; first drills, from which nothing can be learned but to look back for what went with a word; then stories
from short to long, with drills between them, whose pairs stand one to three words apart as in the stories. Without the
drills, or with heads that begin anywhere, a model of this size spends its two minutes guessing among the names that a
story mentions.
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
ALONE = 0.15  # of the tokens, in the beginning, are nothing but drills
SHARES = (0.3, 0.3, 0.4)  # of the rest, by the level of stories
DRILLS = (0.15, 0.05, 0.01)  # how many stories of a level have one more drill before them: without them, what the
# drills have taught is forgotten before the stories have any use for it
ECHOES = 1 / 64  # how many have an echo before them
TOKENS = (64, 69, 97)  # of a story, by level, about
ROW = 187  # tokens of a drill or an echo, about
ALPHABETS = tuple("".join(map(chr, range(*bounds))) for bounds in ((0x21, 0x7F), (0xA1, 0x800)))  # of one byte, of two
DRILL_WORDS, ECHO_BYTES = 186, 180  # a full stop counts as a word
BETWEEN = ("", " the", " to", " had a", " found a")  # as far apart as what the stories join  # most of a row
TEMPERATURE = 0.8  # at which stories are written and scored
ROWS = 64  # prompts continued at a time


def train_config(out: str, *, seconds: float | None = None, steps: int | None = None, seed: int = 0) -> TrainConfig:
    """The settings of a run on stories, for so many seconds or steps."""
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
    """Documents in the order in which they are to be read, about `tokens` tokens in all.

    Over the first `early` the language grows to its last level; a longer run stays there. Drills, ever fewer, and
    echoes come between the stories, so that looking back is not forgotten, and stays good for any token.
    """
    draw, first = Random(seed), min(tokens, early)
    for _ in range(int(ALONE * first / ROW)):
        yield drill(draw)
    for level, share in enumerate(SHARES):
        wanted = (1 - ALONE) * share * first + (tokens - first if level == len(SHARES) - 1 else 0)
        count = int(wanted / (TOKENS[level] + ROW * (DRILLS[level] + ECHOES)))
        for told in corpus.stories(seed, "train", count, level):
            if draw.random() < DRILLS[level]:
                yield drill(draw, BETWEEN)
            if draw.random() < ECHOES:
                yield echo(draw)
            yield told.document


def drill(draw: Random, between: Sequence[str] = ("",)) -> str:
    """A few pairs of nouns, over and over, in a new order and either way round: "Mia ball. Ben kite. ball Mia. ..."

    Only who goes with whom, said before, tells what comes next: nothing else can be learned from it.
    between: one of these words stands between the two, the same all through: at what distance to look.
    """
    count, word = draw.randint(3, 8), draw.choice(between)
    people = draw.sample(corpus.NOUNS["person"], count)
    others = draw.sample(corpus.NOUNS[draw.choice(("thing", "place"))], count)
    pairs, said = list(zip(people, others, strict=True)), []
    size = DRILL_WORDS // (3 + len(word.split()))
    while len(said) < size:
        draw.shuffle(pairs)
        said += [f"{a}{word} {b}." if draw.random() < 0.5 else f"{b}{word} {a}." for a, b in pairs]
    return " ".join(said[:size])


def echo(draw: Random) -> str:
    """A few signs in an order that means nothing, said again until a row is nearly full."""
    once = "".join(draw.choices(draw.choice(ALPHABETS), k=draw.randint(5, 40)))
    return (once * ECHO_BYTES).encode()[:ECHO_BYTES].decode("utf-8", "ignore")


def held_out_documents(count: int = 300) -> Iterator[str]:
    """Stories that no run trains on."""
    return (told.document for told in corpus.stories(0, "held-out", count, start=1_000_000))


@dataclass(frozen=True)
class StoryScores:
    """Shares from 0 to 1. answers: right, on held-out stories, greedily. wellformed: sentences that the grammar could
    have written. consistent: whole stories, with their answers, that contradict nothing they said."""

    answers: float
    who: float
    what: float
    where: float
    wellformed: float
    consistent: float


def score(lm: LanguageModel, *, questions: int = 100, texts: int = 100, seed: int = 0) -> StoryScores:
    """A model's scores: about `questions` held-out stories are asked about, `texts` stories are written."""
    found = stories.score_answers(completer(lm), questions)
    written = write_stories(lm, texts, seed=seed)
    return StoryScores(
        answers=found["all"],
        who=found["who"],
        what=found["what"],
        where=found["where"],
        wellformed=stories.score_wellformed(written),
        consistent=stories.score_consistent(written),
    )


def untrained(lm: LanguageModel, seed: int) -> LanguageModel:
    """The same model with the weights that a run of that seed begins with."""
    return LanguageModel(init_weights(Decoder(lm.config), seed, **asdict(INIT)).eval(), lm.tokenizer)


def baseline_answers(questions: int, documents: int) -> dict[str, float]:
    """The share of held-out questions that each baseline answers right, having read so many documents."""
    read = [told.document for told in corpus.stories(0, "train", documents)]
    return {name: stories.score_answers(b, questions)["all"] for name, b in stories.baselines(read).items()}


def completer(lm: LanguageModel) -> stories.Complete:
    """A model as scores see it: prompts in, greedy continuations out, to the end of the line."""
    request = GenerationRequest([], sampling=Sampling(temperature=0.0), stop=("\n",))

    def complete(prompts: list[str], max_tokens: int) -> list[str]:
        return _continue(lm, prompts, replace(request, max_tokens=max_tokens))

    return complete


def write_stories(lm: LanguageModel, count: int, *, seed: int = 0) -> list[str]:
    """Whole documents of the model's own, each begun with an opener of the grammar."""
    begun = [corpus.OPENERS[i % len(corpus.OPENERS)] for i in range(count)]
    written = _continue(lm, begun, GenerationRequest([], sampling=Sampling(temperature=TEMPERATURE, seed=seed)))
    return [start + text for start, text in zip(begun, written, strict=True)]


def _continue(lm: LanguageModel, prompts: Sequence[str], request: GenerationRequest) -> list[str]:
    texts = [""] * len(prompts)
    for first in range(0, len(prompts), ROWS):
        ids = [lm.encode(prompt) for prompt in prompts[first : first + ROWS]]
        for event in decode(lm.model, replace(request, prompts=ids, end_ids=lm.end_ids), tokenizer=lm.tokenizer):
            texts[first + event.sequence] += event.text
    return texts
