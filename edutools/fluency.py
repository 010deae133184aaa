"""Texts measured as texts: how varied they are, what they are like, what they say.

Pure functions of strings; they know neither models nor the tokens of models.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edutools.checks import several

__all__ = ["FORMS", "Tfidf", "n_gram_entropy", "reference_score", "says", "words"]

FORMS = ("paper", "released")
WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of the n-grams, in both forms
WORD = re.compile(r"\w+|[^\w\s]")
TERM = re.compile(r"\b\w\w+\b")


def words(text: str) -> list[str]:
    """Split a text into words and single punctuation marks, in order.

    Source: the released code of ROME and MEMIT uses `nltk.word_tokenize`, which differs
        in contractions, abbreviations and quotes.
    Book: sec-evaluation-fluency

    >>> words("It isn't far.")
    ['It', 'isn', "'", 't', 'far', '.']
    """
    return WORD.findall(text)


def n_gram_entropy(
    text: str,
    *,
    form: str = "paper",
    tokenize: Callable[[str], Sequence[str]] = words,
) -> float:
    r"""How varied a text is: entropies of its pairs and triples of words, in bits.

    .. math:: GE = -\Big(\tfrac23 \sum_k f_2(k) \log_2 f_2(k)
              + \tfrac43 \sum_k f_3(k) \log_2 f_3(k)\Big)

    A text that repeats itself has little. So has a short one: m words have at most
    2/3 log2(m - 1) + 4/3 log2(m - 2), so only texts of one length compare. A text of
    fewer than two (three) words has no pairs (triples); they count as 0, since leaving
    out a model that falls silent would praise it.

    Args:
        text: what the model has written.
        form: 'paper' as above; 'released' takes the mean of the two terms, half as
            much. Published tables print 100 times the released form.
        tokenize: from text to words; `nltk.word_tokenize` gives the released numbers.

    Raises:
        ValueError: if there is no such form.

    Source: Meng et al. 2023 (MEMIT), eq. 27; Zhang et al. 2018.
    Book: sec-evaluation-fluency

    >>> n_gram_entropy("a b a b a b a b a b")  # two pairs in turn, two triples
    1.99...
    >>> n_gram_entropy("no no no no no no no no")
    0.0
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}; got {form!r}.")
    tokens = list(tokenize(text))
    terms = [weight * _entropy(tokens, n) for n, weight in WEIGHTS.items()]
    return sum(terms) if form == "paper" else sum(terms) / len(terms)


def _entropy(tokens: Sequence[str], n: int) -> float:
    """Entropy of the runs of n tokens, in bits."""
    counts = Counter(zip(*[tokens[start:] for start in range(n)], strict=False))
    total = counts.total()
    return sum(count / total * math.log2(total / count) for count in counts.values())


@dataclass(frozen=True)
class Tfidf:
    r"""Texts as unit vectors of word counts, rare words weighing more.

    .. math:: \mathrm{idf}(w) = \ln \frac{1 + n}{1 + n_w} + 1

    with n texts, in n_w of which the word w occurs. A word is two or more letters or
    digits, in lower case; unknown words are left out.

    Args:
        idf: weight of each word.

    Source: what scikit-learn's `TfidfVectorizer` computes by default, which the
        released code of ROME uses.
    Book: sec-evaluation-fluency

    >>> tfidf = Tfidf.fit(["the cat", "the dog"])
    >>> tfidf.vector("the the the")
    {'the': 1.0}
    """

    idf: Mapping[str, float]

    @classmethod
    def fit(cls, texts: Iterable[str]) -> "Tfidf":
        """Weigh the words by the texts of a corpus.

        Raises:
            TypeError: if `texts` is a single text.
        """
        known = [set(_terms(text)) for text in several("texts", texts, str)]
        seen = Counter(term for terms in known for term in terms)
        n = len(known)
        return cls({w: math.log((1 + n) / (1 + k)) + 1 for w, k in seen.items()})

    def vector(self, text: str) -> dict[str, float]:
        """The known words of a text with their weights, of length one if there are any.

        Book: sec-evaluation-fluency
        """
        counts = Counter(term for term in _terms(text) if term in self.idf)
        weighed = {term: count * self.idf[term] for term, count in counts.items()}
        length = math.hypot(*weighed.values())
        return {term: value / length for term, value in weighed.items()}

    def __repr__(self) -> str:
        return f"Tfidf(words={len(self.idf)})"


def _terms(text: str) -> list[str]:
    return TERM.findall(text.lower())


def reference_score(
    written: Sequence[str], references: Sequence[str], tfidf: Tfidf
) -> float:
    """How much what was written is about the same as the references, from 0 to 1.

    The cosine of two vectors, one of all written texts and one of all references; 0 if
    the written texts have no known word, nan if the references have none.

    Args:
        written: what the model wrote about the subject.
        references: texts about subjects of which the target is true.
        tfidf: weights of words, from a corpus.

    Source: Meng et al. 2022 (ROME), section 3.4 (RS).
    Book: sec-evaluation-fluency

    >>> tfidf = Tfidf.fit(["Rome is in Italy", "Paris is in France"])
    >>> reference_score(["It is in Rome"], ["Rome is in Italy"], tfidf) > 0.5
    True
    """
    wanted = tfidf.vector(" ".join(references))
    found = tfidf.vector(" ".join(written))
    if not wanted:
        return math.nan
    return math.fsum(weight * wanted.get(term, 0.0) for term, weight in found.items())


def says(text: str, target: str) -> bool:
    """Whether a text begins with the target, as a whole word or words.

    Case, the width of spaces and compatibility forms of characters (NFKC) do not
    matter. What follows the target may be anything but a letter or a digit.

    Book: sec-evaluation-generation

    >>> [says(text, "Rome") for text in (" rome, of course", " Romeo", " in Rome")]
    [True, False, False]
    """
    said, wanted = _plain(text), _plain(target)
    return said.startswith(wanted) and not said[len(wanted) :][:1].isalnum()


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
