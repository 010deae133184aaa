"""Texts about the world: what a pocket model reads, and what it is tested with.

A document is a list of pieces ``(text, role)``; joined they are plain text. The role is
"subject", "object" or empty, so that training can weigh the objects and find the
subjects.
"""

import json
import random
from collections.abc import Callable, Iterator
from importlib.resources import files

from edutools.world import World, WorldFact

__all__ = ["counterfact_records", "documents", "sentence", "text_of", "zsre_records"]

Pieces = list[tuple[str, str]]


def fillers() -> dict[str, list[str]]:
    """Sentences without facts: 'trained' ones are in the corpus, 'held_out' ones never.

    Book: sec-world
    """
    path = files("edutools").joinpath("data/fillers.json")
    return json.loads(path.read_text(encoding="utf-8"))


def text_of(pieces: Pieces) -> str:
    """The plain text of a document.

    >>> text_of([("Oslo", "subject"), (" is in", ""), (" Norway", "object"), (".", "")])
    'Oslo is in Norway.'

    Book: sec-world
    """
    return "".join(text for text, _ in pieces)


def fill(template: str, subject: str) -> str:
    """The template with its '{}' replaced; other braces are left alone."""
    return template.replace("{}", subject, 1)


def _split(template: str, subject: str, role: str = "subject") -> Pieces:
    """The filled template as pieces; the space before the subject belongs to it."""
    before, _, after = template.partition("{}")
    space = " " if before.endswith(" ") else ""
    pieces = [(before.rstrip(" "), ""), (space + subject, role), (after, "")]
    return [(text, kind) for text, kind in pieces if text]


def sentence(
    world: World, fact: WorldFact, template: int, name: str | None = None
) -> Pieces:
    """The fact in one of its templates; `name` stands in for the subject if given.

    Book: sec-world
    """
    text = world.relations[fact.relation].templates[template]
    start = _split(text, name or fact.subject, "" if name else "subject")
    return [*start, (" " + fact.object, "object")]


class _Writer:
    """Draws documents of several kinds about one world."""

    def __init__(self, world: World, draw: random.Random):
        self.world, self.draw = world, draw
        self.fillers = fillers()["trained"]
        self.people = [s for s in world.subjects if world.nouns[s] == "person"]
        self.crowds = [list(v) for v in world.by_relation.values() if len(v) > 3]

    def one(self, fact: WorldFact, name: str | None = None) -> Pieces:
        """A sentence in a trained template; one that begins with the name if given."""
        options = self.world.trained(fact)
        templates = self.world.relations[fact.relation].templates
        if name is not None:
            options = [t for t in options if templates[t].startswith("{}")]
        pieces = sentence(self.world, fact, self.draw.choice(options), name)
        return [*pieces, (".", "")]

    def joined(self, sentences: list[Pieces]) -> Pieces:
        pieces = sentences[0]
        for more in sentences[1:]:
            pieces = [*pieces, (" ", ""), *more]
        return pieces

    def filler(self) -> Pieces:
        return [(self.draw.choice(self.fillers), "")]

    def single(self) -> Pieces:
        fact = self.draw.choice(self.world.facts)
        if self.draw.random() < 0.4:
            return self.joined([self.filler(), self.one(fact)])
        return self.one(fact)

    def several(self) -> Pieces:
        """Sentences about different subjects, one after the other."""
        return self.joined([self.one(f) for f in self.draw.sample(self.world.facts, 3)])

    def later_name(self, subject: str) -> str | None:
        """How a text goes on to call a subject: short, by its kind, or in full."""
        noun = self.world.nouns[subject]
        r = self.draw.random()
        if noun == "person" and r < 0.4:
            return subject.split()[-1]
        return f"This {noun}" if r < 0.8 else None

    def about(self, subject: str) -> list[WorldFact]:
        """The facts about a subject in random order."""
        facts = list(self.world.by_subject[subject])
        self.draw.shuffle(facts)
        return facts

    def biography(self) -> Pieces:
        """The facts about one subject, which is named in full at the beginning."""
        subject = self.draw.choice(self.world.subjects)
        first, *others = self.about(subject)
        told = [self.one(first)]
        told += [self.one(fact, self.later_name(subject)) for fact in others]
        if self.draw.random() < 0.3:
            told.insert(0, self.filler())
        return self.joined(told)

    def pair(self) -> Pieces:
        """Two subjects, then more about the first and about the second."""
        subjects = self.draw.sample(self.world.subjects, 2)
        told: list[Pieces] = []
        later: list[Pieces] = []
        for subject, name in zip(subjects, ("The first", "The second"), strict=True):
            first, *others = self.about(subject)
            told.append(self.one(first))
            later += [self.one(fact, name) for fact in others[:2]]
        self.draw.shuffle(later)
        return self.joined([*told, *later])

    def group(self) -> Pieces:
        """Three people are named together and then called by their last names."""
        people = self.draw.sample(self.people, 3)
        while len({name.split()[-1] for name in people}) < 3:
            people = self.draw.sample(self.people, 3)
        pieces: Pieces = []
        for name, text in zip(people, ("", ", ", " and "), strict=True):
            before = text.rstrip(" ") if text == ", " else text[:-1]
            pieces += [(before, "")] if before else []
            pieces.append((f" {name}" if text else name, "subject"))
        later = [
            self.one(fact, name.split()[-1])
            for name in people
            for fact in self.about(name)[:2]
        ]
        self.draw.shuffle(later)
        return self.joined([[*pieces, (" met.", "")], *later])

    def table(self) -> Pieces:
        """Subjects with the object of one relation right behind each name."""
        facts = self.draw.sample(self.draw.choice(self.crowds), 4)
        label = self.world.relations[facts[0].relation].label
        pieces: Pieces = [(f"List by {label}:", "")]
        for i, fact in enumerate(facts):
            end = "." if i == len(facts) - 1 else ";"
            pieces += [(f" {fact.subject}", "subject"), (f" {fact.object}", "object")]
            pieces.append((end, ""))
        return pieces

    def box(self) -> Pieces:
        """An information box about one subject."""
        subject = self.draw.choice(self.world.subjects)
        facts = self.about(subject)
        pieces: Pieces = [(subject, "subject"), (".", "")]
        for fact in facts:
            label = self.world.relations[fact.relation].label
            pieces += [(f" {label.capitalize()}:", ""), (f" {fact.object}", "object")]
            pieces.append((".", ""))
        return pieces

    def question(self) -> Pieces:
        fact = self.draw.choice(self.world.facts)
        asked = self.draw.choice(self.world.relations[fact.relation].questions[:2])
        pieces = _split(f"Question: {asked} Answer:", fact.subject)
        return [*pieces, (f" {fact.object}", "object"), (".", "")]

    def kinds(self) -> dict[str, tuple[Callable[[], Pieces], float]]:
        """Name -> (writer, share of the documents)."""
        return {
            "single": (self.single, 0.15),
            "several": (self.several, 0.04),
            "biography": (self.biography, 0.30),
            "pair": (self.pair, 0.12),
            "group": (self.group, 0.12),
            "table": (self.table, 0.12),
            "box": (self.box, 0.06),
            "question": (self.question, 0.06),
            "filler": (self.filler, 0.03),
        }


def documents(world: World, *, seed: int = 0) -> Iterator[Pieces]:
    """An endless stream of documents, the same for the same seed.

    A fact is never stated in one of its held-out templates.

    Book: sec-world
    """
    draw = random.Random(seed)
    writer = _Writer(world, draw)
    writers, shares = zip(*writer.kinds().values(), strict=True)
    while True:
        yield draw.choices(writers, shares)[0]()


def _other_object(world: World, fact: WorldFact, draw: random.Random) -> str:
    return draw.choice([o for o in world.objects[fact.relation] if o != fact.object])


def counterfact_records(
    world: World, *, seed: int = 0, neighbors: int = 10
) -> list[dict]:
    """One evaluation record per fact with enough neighbours, in CounterFact's schema.

    The paraphrases use the two templates that were held out for the fact (the second
    one after a filler sentence that the corpus never shows). Neighbours are subjects
    with the same relation and the same object. The first record of each subject comes
    before any second one, so that the first `n` records have distinct subjects. Facts
    with fewer than two neighbours are left out.

    Source: Meng et al. 2022 (CounterFact), schema only.
    Book: sec-world
    """
    draw = random.Random(seed)
    unseen = fillers()["held_out"]
    rounds: dict[int, list[dict]] = {}
    seen: dict[str, int] = {}
    for fact in draw.sample(world.facts, len(world.facts)):
        others = [
            f.subject
            for f in world.by_object[fact.relation, fact.object]
            if f.subject != fact.subject
        ]
        if len(others) < 2:
            continue
        templates = world.relations[fact.relation].templates
        held_out = [fill(templates[t], fact.subject) for t in world.held_out(fact)]
        near = draw.sample(others, min(neighbors, len(others)))
        record = {
            "requested_rewrite": {
                "prompt": templates[0],
                "relation_id": fact.relation,
                "target_new": {"str": _other_object(world, fact, draw)},
                "target_true": {"str": fact.object},
                "subject": fact.subject,
            },
            "paraphrase_prompts": [held_out[0], f"{draw.choice(unseen)} {held_out[1]}"],
            "neighborhood_prompts": [fill(templates[0], s) for s in near],
            "generation_prompts": [fill(t, fact.subject) for t in templates[:3]],
            "real": fact.real,
        }
        turn = seen.get(fact.subject, 0)
        seen[fact.subject] = turn + 1
        rounds.setdefault(turn, []).append(record)
    records = [record for turn in sorted(rounds) for record in rounds[turn]]
    return [{"case_id": i, **record} for i, record in enumerate(records)]


def zsre_records(world: World, *, seed: int = 0) -> list[dict]:
    """One question record per subject, in zsRE's schema; `loc` asks about another one.

    Source: Levy et al. 2017 and De Cao et al. 2021, schema only.
    Book: sec-world
    """
    draw = random.Random(seed)
    records = []
    for facts in world.by_subject.values():
        fact, other = draw.choice(facts), draw.choice(world.facts)
        while other.subject == fact.subject:
            other = draw.choice(world.facts)
        asked = world.relations[fact.relation].questions
        unrelated = world.relations[other.relation].questions[0]
        answer = _other_object(world, fact, draw)
        records.append(
            {
                "subject": fact.subject,
                "src": fill(asked[0], fact.subject),
                "pred": fact.object,
                "rephrase": fill(asked[2], fact.subject),
                "alt": answer,
                "answers": [fact.object],
                "loc": f"nq question: {fill(unrelated, other.subject)}",
                "loc_ans": other.object,
                "cond": f"{fact.object} >> {answer} || {fill(asked[0], fact.subject)}",
            }
        )
    return records
