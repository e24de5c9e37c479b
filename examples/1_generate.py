"""Generate text, stream it, and score it, with the small model that ships with the package."""

import glassformer

lm = glassformer.load("stories")
print(lm.generate("One day", max_tokens=40, temperature=0.7, seed=1).text)

for event in lm.stream("Once Max", max_tokens=20, seed=2):
    print(event.text, end="", flush=True)
print()

for text in ("Max got a key. Where is the key?", "Key a got Max. Key the is where?"):
    print(f"{lm.score(text).perplexity:10.1f}  perplexity of {text!r}")
