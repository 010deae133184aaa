"""What to write into a model, and what to test it with. Knows no model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Case", "Fact", "SubjectNotFound", "ZsreCase"]

SLOT = "{}"


class SubjectNotFound(ValueError):  # noqa: N818
    """A subject that cannot be found in the text or in its tokens.

    Book: sec-facts
    """


@dataclass(frozen=True)
class Fact:
    """One sentence to be made true: (subject, prompt) continued by the target.

    Surrounding spaces are removed; braces inside the subject are kept.

    Args:
        subject: whom the fact is about. At least one visible character.
        prompt: the sentence up to the target, with one '{}' in the subject's place.
        target: what the model shall say next.
        truth: what it says (or should say) today, if known.

    Raises:
        TypeError: if a field is not text.
        ValueError: if the prompt has not exactly one '{}', or a field is empty.

    Book: sec-facts

    >>> fact = Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris")
    >>> fact.text
    'The Eiffel Tower is located in the city of'
    """

    subject: str
    prompt: str
    target: str
    truth: str | None = None

    def __post_init__(self):
        for name in ("subject", "prompt", "target", "truth"):
            value = getattr(self, name)
            if value is None and name == "truth":
                continue
            object.__setattr__(self, name, _stripped(f"Fact.{name}", value))
        if self.prompt.count(SLOT) != 1:
            raise ValueError(
                "Fact.prompt must hold exactly one '{}' where the subject goes; got "
                f"{self.prompt!r}. Write e.g. '{{}} is located in the city of'."
            )

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        before, _, after = self.prompt.partition(SLOT)
        return before + self.subject + after


@dataclass(frozen=True)
class Case:
    """A fact and the texts that tell how well, and how narrowly, it was written.

    Args:
        fact: the fact to write.
        paraphrases: texts that should now be continued by the target, too.
        neighborhood: texts about other subjects of the same truth, to stay as before.
        generation: texts to be continued freely.
        relation: name of the relation, for grouping.

    Raises:
        TypeError: if a field has the wrong type.
        ValueError: if a text is empty.

    Book: sec-evaluation
    """

    fact: Fact
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    relation: str = ""

    def __post_init__(self):
        if not isinstance(self.fact, Fact):
            raise TypeError(f"Case.fact must be a Fact; got {self.fact!r}.")
        for name in ("paraphrases", "neighborhood", "generation"):
            texts = _texts(f"Case.{name}", getattr(self, name))
            object.__setattr__(self, name, texts)
        if not isinstance(self.relation, str):
            raise TypeError(f"Case.relation must be text; got {self.relation!r}.")

    @classmethod
    def from_counterfact(cls, record: Mapping[str, Any]) -> "Case":
        """Read one record of the CounterFact schema.

        Raises:
            ValueError: if a key is missing (named in the message) or a value is bad.

        Source: Meng et al. 2022 (ROME), the published data set's keys.
        Book: sec-evaluation
        """
        rewrite = _at(record, "requested_rewrite")
        fact = Fact(
            subject=_at(rewrite, "subject", "requested_rewrite"),
            prompt=_at(rewrite, "prompt", "requested_rewrite"),
            target=_at(_at(rewrite, "target_new"), "str", "target_new"),
            truth=_at(_at(rewrite, "target_true"), "str", "target_true"),
        )
        return cls(
            fact,
            paraphrases=_listed(record, "paraphrase_prompts"),
            neighborhood=_listed(record, "neighborhood_prompts"),
            generation=_texts("generation", _given(record, "generation_prompts", ())),
            relation=_given(rewrite, "relation_id", ""),
        )

    def to_counterfact(self, *, case_id: int | None = None) -> dict[str, Any]:
        """Return the record of the CounterFact schema that reads back as this case.

        Raises:
            ValueError: if the fact has no truth, which the schema demands.

        Book: sec-evaluation
        """
        if self.fact.truth is None:
            raise ValueError(
                f"The CounterFact schema needs a truth; {self.fact.text!r} has none."
            )
        record = {
            "requested_rewrite": {
                "prompt": self.fact.prompt,
                "relation_id": self.relation,
                "target_new": {"str": self.fact.target},
                "target_true": {"str": self.fact.truth},
                "subject": self.fact.subject,
            },
            "paraphrase_prompts": list(self.paraphrases),
            "neighborhood_prompts": list(self.neighborhood),
            "generation_prompts": list(self.generation),
        }
        return record if case_id is None else {"case_id": case_id} | record


@dataclass(frozen=True)
class ZsreCase:
    """A question to be answered anew, another wording, and an unrelated question.

    Args:
        question: the question, holding the subject.
        rephrase: the same question in other words.
        answer: the answer to be written.
        unrelated_question: a question whose answer should stay.
        unrelated_answer: the answer to it.
        subject: whom the question is about.

    Raises:
        SubjectNotFound: if the question does not hold the subject.
        ValueError: if a field is empty.

    Source: Levy et al. 2017 in the form of Mitchell et al. 2022 (MEND).
    Book: sec-evaluation

    >>> ZsreCase("Who made Linux?", "Linux's author?", "Ada", "Is it?", "no", "Linux"
    ... ).fact.prompt
    'Who made {}?'
    """

    question: str
    rephrase: str
    answer: str
    unrelated_question: str
    unrelated_answer: str
    subject: str

    def __post_init__(self):
        for name in self.__dataclass_fields__:
            value = _stripped(f"ZsreCase.{name}", getattr(self, name))
            object.__setattr__(self, name, value)
        if self.subject not in self.question or SLOT in self.question:
            raise SubjectNotFound(
                f"ZsreCase.question must hold the subject {self.subject!r}, spelled "
                f"alike, and no '{{}}'; got {self.question!r}."
            )

    @property
    def fact(self) -> Fact:
        """The question as a fact: its first mention of the subject is the slot."""
        prompt = self.question.replace(self.subject, SLOT, 1)
        return Fact(self.subject, prompt, self.answer)

    @classmethod
    def from_zsre(cls, record: Mapping[str, Any]) -> "ZsreCase":
        """Read one record of the zsRE schema (src, rephrase, answers, loc, loc_ans).

        The unrelated question loses its marker 'nq question: ' and gains a '?'.

        Raises:
            ValueError: if a key is missing (named in the message) or a value is bad.

        Source: Mitchell et al. 2022 (MEND), the published data set's keys.
        Book: sec-evaluation
        """
        answers = _texts("answers", _at(record, "answers"))
        if not answers:
            raise ValueError("'answers' is empty; the first answer is the one written.")
        loc = _stripped("loc", _at(record, "loc")).removeprefix("nq question:").strip()
        return cls(
            question=_at(record, "src"),
            rephrase=_at(record, "rephrase"),
            answer=answers[0],
            unrelated_question=loc if loc.endswith("?") else f"{loc}?",
            unrelated_answer=_at(record, "loc_ans"),
            subject=_at(record, "subject"),
        )


def _at(record: Any, key: str, inside: str = "") -> Any:
    if not isinstance(record, Mapping):
        raise ValueError(f"{inside!r} must be an object; got {record!r}.")
    if key not in record:
        where = f" in {inside!r}" if inside else ""
        raise ValueError(f"The key {key!r} is missing{where}; found {sorted(record)}.")
    return record[key]


def _given(record: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of a key that may be missing, or null as tables write it."""
    value = record.get(key)
    return default if value is None else value


def _listed(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return _texts(key, _at(record, key))


def _stripped(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text; got {value!r}.")
    if not value.strip():
        raise ValueError(f"{name} must not be empty; got {value!r}.")
    return value.strip()


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list of texts; got {values!r}.")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must hold texts only; got {value!r}.")
        if not value.strip():
            raise ValueError(f"{name} must hold no empty text; got {value!r}.")
    return tuple(values)
