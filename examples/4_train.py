"""Train a tokenizer and a small model on generated stories for a few seconds, then generate from it."""

import tempfile

import glassformer
from glassformer.toys import stories

with tempfile.TemporaryDirectory() as folder:
    documents = [story.document for story in stories.stories(seed=1, split="train", n=2000)]
    config = glassformer.TrainConfig(out=f"{folder}/run", steps=30)
    glassformer.train(config, documents=documents)
    lm = glassformer.load(f"{folder}/run")
    print("One day" + lm.generate("One day", max_tokens=30, seed=1).text)
