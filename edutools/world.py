"""A small world of facts, real and invented, that the pocket models are trained on.

The real facts are tables in ``edutools/data/real``; people and companies that nobody
has heard of fill the world up. Their names are made of the same few pieces: one half of
the people carry two of thirty words, in both orders, the other half a real first name
and one of these words. So no single token gives a subject away, and the last one
decides.
"""

import csv
import hashlib
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

__all__ = ["Relation", "World", "WorldFact", "build_world", "read_relations"]

# table -> (noun that later sentences use, relation of each column after the first)
TABLES = {
    "landmarks": ("landmark", ("city", "country")),
    "cities": ("city", ("country",)),
    "countries": ("country", ("capital", "official_language", "continent")),
    "companies": ("company", ("based", "industry")),
    "products": ("product", ("maker",)),
    "people": ("person", ("profession", "mother_tongue")),
    "athletes": ("person", ("sport", "team")),
    "musicians": ("person", ("instrument", "mother_tongue")),
    "works": ("work", ("creator", "kind")),
    "dishes": ("dish", ("origin",)),
}
INVENTED_PERSON = (
    "profession",
    "mother_tongue",
    "sport",
    "instrument",
    "birthplace",
    "residence",
)
INVENTED_COMPANY = ("based", "industry", "founded")
SHARED_OBJECTS = {"birthplace": "city", "residence": "city", "founded": "city"}
ONSETS = "Bel Cor Dar Fen Mir".split()
ENDINGS = "din vek mund tis lo wyn".split()


@dataclass(frozen=True)
class Relation:
    """What is said of a subject: templates with one '{}' each, questions, and a label.

    Book: sec-world
    """

    name: str
    label: str
    templates: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class WorldFact:
    """One (subject, relation, object); `real` tells whether the world outside agrees.

    Book: sec-world
    """

    subject: str
    relation: str
    object: str
    real: bool


@dataclass(frozen=True)
class World:
    """All facts, the relations they use, and the noun for each subject ('person', ...).

    Book: sec-world
    """

    facts: tuple[WorldFact, ...]
    relations: dict[str, Relation]
    nouns: dict[str, str]

    def __repr__(self) -> str:
        real = sum(fact.real for fact in self.facts)
        return (
            f"World({len(self.facts)} facts, {real} of them real, "
            f"about {len(self.subjects)} subjects in {len(self.relations)} relations)"
        )

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Each subject once, in order of appearance."""
        return tuple(self.by_subject)

    @cached_property
    def by_subject(self) -> dict[str, tuple[WorldFact, ...]]:
        """The facts about each subject."""
        found: dict[str, list[WorldFact]] = {}
        for fact in self.facts:
            found.setdefault(fact.subject, []).append(fact)
        return {subject: tuple(facts) for subject, facts in found.items()}

    @cached_property
    def by_object(self) -> dict[tuple[str, str], tuple[WorldFact, ...]]:
        """The facts that share a relation and an object."""
        found: dict[tuple[str, str], list[WorldFact]] = {}
        for fact in self.facts:
            found.setdefault((fact.relation, fact.object), []).append(fact)
        return {key: tuple(facts) for key, facts in found.items()}

    @cached_property
    def by_relation(self) -> dict[str, tuple[WorldFact, ...]]:
        """The facts of each relation."""
        found: dict[str, list[WorldFact]] = {}
        for fact in self.facts:
            found.setdefault(fact.relation, []).append(fact)
        return {name: tuple(facts) for name, facts in found.items()}

    @cached_property
    def objects(self) -> dict[str, tuple[str, ...]]:
        """The objects of each relation, sorted."""
        found: dict[str, set[str]] = {}
        for fact in self.facts:
            found.setdefault(fact.relation, set()).add(fact.object)
        return {name: tuple(sorted(objects)) for name, objects in found.items()}

    def held_out(self, fact: WorldFact) -> tuple[int, ...]:
        """The two templates in which the fact never occurs in the corpus.

        For one fifth of the subjects these are the same two templates of every relation
        (held out for the whole group); for the others they are drawn fact by fact.
        """
        group = _digest(fact.subject) % 5
        if group == 0:
            return (3, 7)
        draw = random.Random(_digest(f"{fact.subject}|{fact.relation}"))
        return tuple(sorted(draw.sample(range(1, 8), 2)))

    def trained(self, fact: WorldFact) -> tuple[int, ...]:
        """The six templates in which the corpus may state the fact."""
        return tuple(t for t in range(8) if t not in self.held_out(fact))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_relations() -> dict[str, Relation]:
    """The relations in ``edutools/data/relations.toml`` by name.

    Book: sec-world
    """
    text = files("edutools").joinpath("data/relations.toml").read_text(encoding="utf-8")
    return {
        name: Relation(
            name, row["label"], tuple(row["templates"]), tuple(row["questions"])
        )
        for name, row in tomllib.loads(text).items()
    }


def _real_facts() -> Iterator[tuple[WorldFact, str]]:
    for table, (noun, relations) in TABLES.items():
        path = files("edutools").joinpath(f"data/real/{table}.tsv")
        rows = csv.reader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")
        next(rows)
        for subject, *objects in rows:
            for relation, value in zip(relations, objects, strict=True):
                if value != "-":
                    yield WorldFact(subject, relation, value, True), noun


def _name_pairs(draw: random.Random, n: int) -> list[tuple[str, str]]:
    """n ordered pairs of name words; with (a, b) always comes (b, a)."""
    words = [onset + ending for onset in ONSETS for ending in ENDINGS]
    pairs = [(a, b) for i, a in enumerate(words) for b in words[i + 1 :]]
    chosen = draw.sample(pairs, n // 2)
    return [pair for a, b in chosen for pair in ((a, b), (b, a))]


def _first_names(draw: random.Random, n: int) -> list[tuple[str, str]]:
    """n pairs of a real person's first name and a name word."""
    words = [onset + ending for onset in ONSETS for ending in ENDINGS]
    people = [fact.subject.split() for fact, noun in _real_facts() if noun == "person"]
    first = sorted({name[0] for name in people if len(name) > 1 and name[0].isalpha()})
    pairs = [(a, b) for a in draw.sample(first, 60) for b in words]
    return draw.sample(pairs, n)


def _invented_facts(
    objects: dict[str, tuple[str, ...]], seed: int, people: int, companies: int
) -> Iterator[tuple[WorldFact, str]]:
    draw = random.Random(seed)

    def pick(relation: str) -> str:
        return draw.choice(objects[SHARED_OBJECTS.get(relation, relation)])

    half = people // 4 * 2
    names = _name_pairs(draw, half) + _first_names(draw, people - half)
    for first, last in names:
        dropped = draw.choice(INVENTED_PERSON)
        for relation in INVENTED_PERSON:
            if relation != dropped:
                fact = WorldFact(f"{first} {last}", relation, pick(relation), False)
                yield fact, "person"
    for first, last in _name_pairs(draw, companies):
        for relation in INVENTED_COMPANY:
            fact = WorldFact(f"{first} & {last}", relation, pick(relation), False)
            yield fact, "company"


def build_world(*, seed: int = 0, people: int = 420, companies: int = 180) -> World:
    """The world that the pocket models know, the same for the same arguments.

    Args:
        seed: of the invented part.
        people: number of invented people, even; each has five of six relations.
        companies: number of invented companies, even; each has three relations.

    Raises:
        ValueError: if a number is odd or negative.

    Book: sec-world
    """
    for name, value in {"people": people, "companies": companies}.items():
        if value < 0 or value % 2:
            raise ValueError(
                f"{name} must be even and not negative, because names come in both "
                f"word orders; got {value}. "
                f"Write e.g. {name}={max(0, value) + max(0, value) % 2}."
            )
    real = list(_real_facts())
    nouns = {fact.subject: noun for fact, noun in real}
    facts = [fact for fact, _ in real]
    objects = World(tuple(facts), {}, {}).objects
    for fact, noun in _invented_facts(objects, seed, people, companies):
        facts.append(fact)
        nouns[fact.subject] = noun
    return World(tuple(facts), read_relations(), nouns)
