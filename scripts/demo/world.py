"""The small world of the demo: its words, its people, and the grammar that makes sentences of them.

A template is plain English with three marks: `[a|b]` takes one of the choices (they nest), `<rule>` takes one
template of that section of a grammar file, `{slot}` is a fact of the document at hand. Who wants to know what is
told reads `stories.txt`; who wants to know how it becomes documents, `write_text.py`.
"""
import re
from pathlib import Path

GIRLS = "Anna Clara Ella Emma Greta Hanna Ida June Lena Mia Molly Nora Rosa Ruth Tess Vera Wilma Zoe".split()
BOYS = "Ben Emil Felix Finn Hugo Jack Karl Leo Max Ned Noah Oskar Otto Paul Sam Theo Tom Victor".split()
PETS = "Bibi Biscuit Button Coco Dot Fluff Luna Milo Momo Muff Pepper Pip Poppy Tiki Toffee Zip".split()
SYLLABLES = "ba be bo da do fa fe ga ka ki la li lo lu ma me mi mo na ne no pa pe pi ra re ri ro sa so ta ti to va vi zo".split()
LAST_SYLLABLES = SYLLABLES + "ben dal kin lan len mar nik ran rik ron tan tas".split()
JOBS = ("baker tailor miller farmer sailor painter teacher doctor gardener singer weaver potter fisher smith "
        "shepherd carpenter cook hunter dancer knight").split()
ANIMALS = ("bear cat crow dog donkey duck fox frog goat goose hedgehog hen horse mouse owl pony rabbit sheep "
           "squirrel turtle").split()
COLORS = "black blue brown golden gray green orange pink purple red silver white yellow".split()
COATS = "black brown golden gray red white yellow old tiny fat spotted striped young".split()
NATURES = "kind brave clever old young happy quiet merry shy busy proud gentle funny poor lazy".split()
PLACES = [(near, noun) for near, nouns in {
    "by": "river lake sea bridge old well harbor",
    "near": "mill market station tower school castle",
    "on": "hill farm island mountain",
    "in": "forest village valley meadow orchard garden",
}.items() for noun in nouns.replace("old well", "old_well").split()]
THINGS = ("kite ball boat drum lamp key ring hat coat scarf basket cup book bell spoon box blanket flute map wheel "
          "ladder rope bucket umbrella clock mirror pillow chair").split()
FOODS = ("apple pie|plum cake|warm bread|carrot soup|cheese|honey|nuts|berries|pancakes|cherry jam|pears|cookies|"
         "noodles|roasted corn|beans|rice pudding|tomatoes|fried fish").split("|")
SHE = dict(he="she", him="her", his="her", He="She", His="Her", self="herself", child="girl")
HE = dict(he="he", him="him", his="his", He="He", His="His", self="himself", child="boy")


def grammar(path):
    """The sections of a grammar file: `== rule`, then its templates, parted by blank lines. A line of a
    template is joined to the next by a space; `//` is a line break of the text."""
    sections = re.split(r"^== (\w+)\n", Path(path).read_text(), flags=re.M)[1:]
    return {rule: [" ".join(t.split()) for t in body.strip().split("\n\n")]
            for rule, body in zip(sections[::2], sections[1::2])}


def tell(rng, rules, rule, facts):
    """One text of a rule, with the facts filled in."""
    text = f"<{rule}>"
    while match := re.search(r"<(\w+)>", text) or re.search(r"\[([^\[\]]*)\]", text):
        inner = match[1]
        chosen = rng.choice(rules[inner] if match[0][0] == "<" else inner.split("|"))
        text = text[: match.start()] + chosen + text[match.end():]
    text = re.sub(r" ?// ?", "\n", re.sub(r" +", " ", text)).strip().format_map(facts)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def invented_name(rng):
    """A name of two or three syllables that nobody has: it can only be copied, not recalled."""
    syllables = rng.choices(SYLLABLES, k=rng.choice((1, 1, 1, 1, 2))) + [rng.choice(LAST_SYLLABLES)]
    return "".join(syllables).title()


def facts_of(rng, invented=0.2):
    """The facts of one document: two people (the second's slots end in 2), their pets, things and places."""
    facts = {}
    animals, coats, places = (rng.sample(of, 5) for of in (ANIMALS, COATS, PLACES))
    foods, things, colors = (rng.sample(of, 3) for of in (FOODS, THINGS, COLORS))
    names = set()
    for person, mark in enumerate(("", "2")):
        sex = rng.choice((SHE, HE))
        job = rng.choices((rng.choice(JOBS), sex["child"], animals[person + 2]), (5, 3, 2))[0]
        one = dict(sex, name=a_name(rng, GIRLS if sex is SHE else BOYS, names, invented), job=job,
                   petname=a_name(rng, PETS, names, invented), pet=animals[person], coat=coats[person],
                   home=" the ".join(places[person]), spot=" the ".join(places[person + 2]),
                   place=places[person + 2][1], food=foods[person], thing=things[person], color=colors[person])
        facts.update({key + mark: value.replace("_", " ") for key, value in one.items()})
    return facts | dict(pet3=animals[4], coat3=coats[4], food3=foods[2], thing3=things[2], color3=colors[2])


def a_name(rng, known, taken, invented):
    """A name that the document does not have yet."""
    while (name := invented_name(rng) if rng.random() < invented else rng.choice(known)) in taken:
        pass
    taken.add(name)
    return name
