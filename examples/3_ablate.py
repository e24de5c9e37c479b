"""Find the heads that cause an answer: ablate each head and measure the change of the next-token distribution."""

import glassformer
from glassformer.inspect.edits.edit import ablate

lm = glassformer.load("stories")
question = "One day Max got a key. Soon Ann found a shell. Later Max ran to Rome.\nWhere is Max?"
t = lm.trace(question)
print("answer:", lm.generate(question, max_tokens=2, temperature=0).text)

effects = sorted(lm.sweep(t, over="heads"), key=lambda result: -result.value)
for result in effects[:3]:
    print(f"layer {result.layer} head {result.head}: KL divergence {result.value:.3f}")

strongest = effects[0]
edit = ablate(f"blocks.{strongest.layer}.attn.z", head=strongest.head)
print("answer without that head:", lm.generate(question, max_tokens=2, temperature=0, edit=[edit]).text)
