"""The text on which the demo's model is pre-trained: stories, plays, letters and talks, without end.

    python write_text.py 5      # five documents, to read

Every sentence comes from `stories.txt`; no text of others is in it. A document is tokens between `<s>` and `</s>`.
A talk has the form of the model's chat template: a question is answered, and whatever else the user says, the answer
is a story, often about the people of the message. That is what the model knows before the demo teaches it something.
"""
import itertools
import random
import sys
from pathlib import Path

from world import facts_of, grammar, tell

RULES = grammar(Path(__file__).with_name("stories.txt"))
KINDS = {"quiz": 50, "talk": 25, "story": 10, "play": 6, "letter": 4, "note": 3, "fact": 2}
TALKS = "quiz", "talk"


def documents(seed):
    """Endless documents; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        kind = rng.choices(list(KINDS), KINDS.values())[0]
        facts = facts_of(rng)
        text = tell(rng, RULES, kind, facts)
        yield f"<s>{talk(text) if kind in TALKS else text}</s>"


def talk(text):
    """`said => answered => said => answered` in the form of the model's chat template."""
    turns = zip(itertools.cycle(("<|user|>", "<|assistant|>")), text.split(" => "))
    return "</s>".join(mark + turn for mark, turn in turns)


if __name__ == "__main__":
    for _, document in zip(range(int(sys.argv[1])), documents(seed=0)):
        print(document, end="\n\n")
