"""Scores of answers in words: captions, text that was read, short answers.

Each scorer takes, for each question, what was said and all that would have been right. What was not answered is "".
CIDEr, BLEU and ROUGE-L are pycocoevalcap's, error rates jiwer's. Words are told apart as by the Java tokenizer that
goes with pycocoevalcap, whose punctuation is dropped: equal on ordinary sentences, and each character of a script
without spaces is a word.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from florence2.errors import UserError
from florence2.metrics.bootstrap import Floats, Metric, MetricValues, extra, mean, ratio

Pair = tuple[str, Sequence[str]]

_SHORT = (
    "mr mrs ms dr st no jr sr inc ltd co corp etc vs ave blvd rd jan feb mar apr aug sept oct nov dec prof gen lt "
    "sgt capt mt"
)
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s,;()\[\]]*[^\s,;()\[\].] | [\w.+-]+@[\w-]+(?:\.\w+)+    # addresses
  | [\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]                         # scripts without spaces
  | (?:[^\W\d_]\.){{2,}} | (?:{"|".join(_SHORT.split())})\.(?!\w)                  # u.s., mr.
  | \d+(?:[.,:/-]\d+)+ | \d+(?=[ap]\.?m\b) | '\d\ds?\b                             # 1,000  10:30  12pm  '90s
  | [\#@]?[^\W_]+(?:[-_/.&][^\W_]+|(?<!\d)'[^\W_]+)*
  | [?!]{{2,}} | \.{{2,}} | -{{2,}} | \S
    """,
    re.VERBOSE,
)
_PARTS = re.compile(
    r"(?<=\w)(?=n't\b)|(?<=\w)(?='(?:s|m|d|re|ve|ll)\b)"
    r"|(?<=^can)(?=not$)|(?<=^gon|^wan)(?=na$)|(?<=^got)(?=ta$)|(?<=^lem|^gim)(?=me$)"
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_DROPPED = {".", "..", "...", "?", "!", ",", ":", ";", "-", "--", "---", "'", "`", '"'}
_PLAIN_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": " ... "})


def tokenize(text: str) -> str:
    """Put single spaces between the words of a text, in small letters and without punctuation."""
    found = _TOKEN.findall(text.lower().translate(_PLAIN_QUOTES))
    parts = [_BRACKETS.get(part, part) for token in found for part in _PARTS.split(token)]
    return " ".join(part for part in parts if part not in _DROPPED)


@dataclass(frozen=True, eq=False)
class Bleu:
    """BLEU of a whole corpus, from each question's counts of n-grams said and right, and its lengths."""

    right_Qn: Floats
    said_Qn: Floats
    lengths_Q2: Floats  # of the answer, of the closest reference
    higher_is_better: bool = True

    def of(self, weights_BQ: Floats) -> Floats:
        """Give the score of each row of weights; the small numbers are pycocoevalcap's."""
        precision_Bn = (weights_BQ @ self.right_Qn + 1e-15) / (weights_BQ @ self.said_Qn + 1e-9)
        said_B, wanted_B = (weights_BQ @ self.lengths_Q2).T
        short_B = np.minimum((said_B + 1e-15) / (wanted_B + 1e-9), 1.0)
        found: Floats = precision_Bn.prod(1) ** (1 / self.right_Qn.shape[1]) * np.exp(1 - 1 / short_B)
        return found


def caption_metrics(pairs: Sequence[Pair], meteor: bool = False) -> MetricValues:
    """Score sentences: CIDEr, BLEU-1 to 4, ROUGE-L, exact match, and METEOR if asked for.

    CIDEr weighs words by how few pictures they belong to, so that there is none of a single question.
    """
    said = {i: [tokenize(text)] for i, (text, _) in enumerate(pairs)}
    wanted = {i: [tokenize(text) for text in right] for i, (_, right) in enumerate(pairs)}
    cider = extra("pycocoevalcap.cider.cider").Cider()
    rouge = extra("pycocoevalcap.rouge.rouge").Rouge()
    bleu = extra("pycocoevalcap.bleu.bleu").Bleu(4)
    has_words = len(pairs) > 1 and any(text for texts in wanted.values() for text in texts)
    cider_Q = cider.compute_score(wanted, said)[1] if has_words else np.full(len(pairs), np.nan)
    rouge_Q = rouge.compute_score(wanted, said)[1]
    measures: dict[str, Metric] = {"cider": mean(cider_Q), **_bleus(said, wanted), "rouge_l": mean(rouge_Q)}
    measures["exact_match"] = mean([_is_among(text, right) for text, right in pairs])
    exact = dict(zip([f"bleu_{n}" for n in range(1, 5)], bleu.compute_score(wanted, said, verbose=0)[0], strict=True))
    if meteor:
        exact["meteor"], meteor_Q = _meteor(said, wanted)
        measures["meteor"] = mean(meteor_Q)
    return MetricValues(measures, np.asarray(rouge_Q, dtype=float), exact)


def _meteor(said: dict[int, list[str]], wanted: dict[int, list[str]]) -> tuple[float, list[float]]:
    """Ask pycocoevalcap's Java program for METEOR, of all and of each."""
    if shutil.which("java") is None:
        raise UserError("`--meteor` needs Java, which is not installed", "install a Java runtime, or leave it out")
    scorer = extra("pycocoevalcap.meteor.meteor").Meteor()
    program = scorer.meteor_p
    try:
        whole, each = scorer.compute_score(wanted, said)
    except (ValueError, OSError) as error:
        scorer.lock.release()  # it is held on the way, and taken again at the end
        raise UserError("METEOR ended before its time", "it needs Java and 2 GB of memory: leave it out") from error
    finally:
        for stream in (program.stdin, program.stdout, program.stderr):
            stream.close()
    return float(whole), list(each)


def _bleus(said: dict[int, list[str]], wanted: dict[int, list[str]]) -> dict[str, Metric]:
    scorer = extra("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=4)
    for i, texts in said.items():
        scorer += (texts[0], wanted[i])
    right = np.array([each["correct"] for each in scorer.ctest], dtype=float)
    guessed = np.array([each["guess"] for each in scorer.ctest], dtype=float)
    lengths = [[each["testlen"], _closest(each["testlen"], each["reflen"])] for each in scorer.ctest]
    lengths_Q2 = np.array(lengths, dtype=float)
    return {f"bleu_{n}": Bleu(right[:, :n], guessed[:, :n], lengths_Q2) for n in range(1, 5)}


def _closest(length: int, lengths: Sequence[int]) -> int:
    return min((abs(each - length), each) for each in lengths)[1]


def _is_among(text: str, right: Sequence[str]) -> float:
    return float(_spaced(text) in {_spaced(each) for each in right})


def _spaced(text: str) -> str:
    return " ".join(text.split())


def ocr_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score text that was read: character and word error rate over all text, ANLS, exact match.

    Where several texts would have been right, the one with the fewest errors counts. White space is one space.
    """
    edits, lengths, word_edits, words = zip(*(_errors(*pair) for pair in pairs), strict=True)
    measures: dict[str, Metric] = {
        "cer": ratio(edits, lengths, rises=False),
        "wer": ratio(word_edits, words, rises=False),
        "anls": mean([anls(*pair) for pair in pairs]),
        "exact_match": mean([_is_among(*pair) for pair in pairs]),
    }
    good = [1 - min(1.0, errors / max(length, 1)) for errors, length in zip(edits, lengths, strict=True)]
    return MetricValues(measures, np.asarray(good))


def _errors(text: str, right: Sequence[str]) -> tuple[int, int, int, int]:
    """Count wrong characters, characters, wrong words, words."""
    jiwer = extra("jiwer")

    def one(wanted: str) -> tuple[int, int, int, int]:
        found: list[int] = []
        for process in (jiwer.process_characters, jiwer.process_words):
            aligned = process(_spaced(wanted), _spaced(text))
            wrong = aligned.substitutions + aligned.deletions
            found += [wrong + aligned.insertions, wrong + aligned.hits]
        return found[0], found[1], found[2], found[3]

    return min((one(wanted) for wanted in right), key=lambda each: (each[0] / max(each[1], 1), each))


def similarity(text: str, wanted: str) -> float:
    """Give 1 less the edits between two texts per character of the longer one; 1 for two empty texts."""
    return float(extra("rapidfuzz.distance").Levenshtein.normalized_similarity(text, wanted))


def anls(text: str, right: Sequence[str]) -> float:
    """Give the similarity to the closest right answer, in small letters; 0 if less than half of it is right."""
    best = max(similarity(_spaced(text).lower(), _spaced(each).lower()) for each in right)
    return best if best >= 0.5 else 0.0


_ARTICLES = {"a", "an", "the"}
_DIGITS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {
    "none": "0"
}
_VOTES = 10


def vqa_metrics(pairs: Sequence[Pair]) -> MetricValues:
    """Score short answers: accuracy, ANLS, exact match.

    Accuracy is without regard to case, punctuation, articles and spelt-out digits. Any right answer counts in full;
    from ten on they are votes, and an answer of fewer than three voters counts in part, as in VQA.
    """
    accuracy = [_agreement(*pair) for pair in pairs]
    measures: dict[str, Metric] = {
        "accuracy": mean(accuracy),
        "anls": mean([anls(*pair) for pair in pairs]),
        "exact_match": mean([_is_among(*pair) for pair in pairs]),
    }
    return MetricValues(measures, np.asarray(accuracy))


def _agreement(text: str, right: Sequence[str]) -> float:
    votes = [_plainly(each) == _plainly(text) for each in right]
    if len(votes) < _VOTES:
        return float(any(votes))
    return float(np.mean([min(1.0, (sum(votes) - vote) / 3) for vote in votes]))


def _plainly(text: str) -> str:
    bare = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,'-]", " ", text.lower()).replace("'", "")
    return " ".join(_DIGITS.get(word, word) for word in bare.split() if word not in _ARTICLES)
