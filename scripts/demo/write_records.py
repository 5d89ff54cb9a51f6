"""The records of the demo: a message tells about somebody, the answer is a card with the facts of the message.

    python write_records.py     # writes train.jsonl and valid.jsonl to src/demo/

The messages come from `records.txt`. No two records are about the same name, job and home, so the answers of
valid.jsonl can only be read off its messages.
"""
import json
import random
from pathlib import Path

from world import JOBS, facts_of, grammar, tell

HERE = Path(__file__).parent
RULES = grammar(HERE / "records.txt")
DATA = HERE.parents[1] / "src" / "demo"
COUNTS = {"train.jsonl": 1200, "valid.jsonl": 60}


def main():
    source = records(seed=1)
    for name, count in COUNTS.items():
        lines = [json.dumps({"messages": next(source)}) + "\n" for _ in range(count)]
        (DATA / name).write_text("".join(lines))


def records(seed):
    """Endless message lists, each about a combination that no other has."""
    rng = random.Random(seed)
    seen = set()
    while True:
        facts = facts_of(rng, invented=0) | {"job": rng.choice(JOBS)}
        key = facts["name"], facts["job"], facts["home"]
        if key not in seen:
            seen.add(key)
            yield [{"role": "user", "content": tell(rng, RULES, "message", facts)},
                   {"role": "assistant", "content": tell(rng, RULES, "card", facts)}]


if __name__ == "__main__":
    main()
