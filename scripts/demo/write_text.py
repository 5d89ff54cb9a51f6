"""The text on which the demo's model is pre-trained: stories, plays, letters and short talks, without end.

    python write_text.py 5      # five documents, to read

Every sentence comes from `stories.txt`; no text of others is in it. A document is tokens between `<s>` and `</s>`.
A talk has the form of the model's chat template: whatever the user says, the answer is a story, often about the
people of the message. That is what the model knows before the demo teaches it something else.
"""
import random
import sys
from pathlib import Path

from world import facts_of, grammar, tell

RULES = grammar(Path(__file__).with_name("stories.txt"))
KINDS = {"talk": 45, "story": 35, "play": 8, "letter": 5, "note": 4, "fact": 3}


def documents(seed):
    """Endless documents; the same seed gives the same ones."""
    rng = random.Random(seed)
    while True:
        kind = rng.choices(list(KINDS), KINDS.values())[0]
        facts = facts_of(rng)
        yield f"<s>{talk(rng, facts) if kind == 'talk' else tell(rng, RULES, kind, facts)}</s>"


def talk(rng, facts):
    """What the user says and the story that answers it, about the same facts."""
    said = tell(rng, RULES, rng.choice(("request", "about", "about", "about")), facts)
    return f"<|user|>{said}</s><|assistant|>{tell(rng, RULES, 'story', facts)}"


if __name__ == "__main__":
    for _, document in zip(range(int(sys.argv[1])), documents(seed=0)):
        print(document, end="\n\n")
