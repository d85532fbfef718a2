"""Metrics of text: captions, OCR, short answers.

Each metric function takes, for each example, the predicted text and all its references. A missing prediction is "".
CIDEr, BLEU and ROUGE-L are computed by pycocoevalcap, error rates by jiwer. The tokenizer follows the Java tokenizer
of pycocoevalcap and drops its punctuation: it is equal on ordinary sentences, and each character of a script without
spaces is a word.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from florence2.errors import MissingPackageError, UserError
from florence2.metrics.bootstrap import Floats, Metric, MetricValues, import_extra, mean, ratio

TextPair = tuple[str, Sequence[str]]  # prediction, references

_ABBREVIATIONS = (
    "mr mrs ms dr st no jr sr inc ltd co corp etc vs ave blvd rd jan feb mar apr aug sept oct nov dec prof gen lt "
    "sgt capt mt"
)
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s,;()\[\]]*[^\s,;()\[\].] | [\w.+-]+@[\w-]+(?:\.\w+)+    # addresses
  | [\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]                         # scripts without spaces
  | (?:[^\W\d_]\.){{2,}} | (?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w)          # u.s., mr.
  | \d+(?:[.,:/-]\d+)+ | \d+(?=[ap]\.?m\b) | '\d\ds?\b                             # 1,000  10:30  12pm  '90s
  | [\#@]?[^\W_]+(?:[-_/.&][^\W_]+|(?<!\d)'[^\W_]+)*
  | [?!]{{2,}} | \.{{2,}} | -{{2,}} | \S
    """,
    re.VERBOSE,
)
_SPLITS = re.compile(
    r"(?<=\w)(?=n't\b)|(?<=\w)(?='(?:s|m|d|re|ve|ll)\b)"
    r"|(?<=^can)(?=not$)|(?<=^gon|^wan)(?=na$)|(?<=^got)(?=ta$)|(?<=^lem|^gim)(?=me$)"
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PUNCTUATION = {".", "..", "...", "?", "!", ",", ":", ";", "-", "--", "---", "'", "`", '"'}
_PLAIN_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": " ... "})


def tokenize(text: str) -> str:
    """Return the tokens of a text separated by single spaces, in lower case and without punctuation."""
    tokens = _TOKEN.findall(text.lower().translate(_PLAIN_QUOTES))
    parts = [_BRACKETS.get(part, part) for token in tokens for part in _SPLITS.split(token)]
    return " ".join(part for part in parts if part not in _PUNCTUATION)


@dataclass(frozen=True, eq=False)
class Bleu:
    """Corpus BLEU, from each example's numbers of matched and predicted n-grams and its lengths."""

    matched_En: Floats
    predicted_En: Floats
    lengths_E2: Floats  # of the prediction, of the closest reference
    higher_is_better: bool = True

    def compute(self, weights_BE: Floats) -> Floats:
        """Compute the value for each row of weights; the small numbers are those of pycocoevalcap."""
        precision_Bn = (weights_BE @ self.matched_En + 1e-15) / (weights_BE @ self.predicted_En + 1e-9)
        prediction_B, reference_B = (weights_BE @ self.lengths_E2).T
        length_ratio_B = np.minimum((prediction_B + 1e-15) / (reference_B + 1e-9), 1.0)
        bleu_B: Floats = precision_Bn.prod(1) ** (1 / self.matched_En.shape[1]) * np.exp(1 - 1 / length_ratio_B)
        return bleu_B


def caption_metrics(pairs: Sequence[TextPair], meteor: bool = False) -> MetricValues:
    """Compute CIDEr, BLEU-1 to 4, ROUGE-L and exact match, and METEOR if `meteor` is set.

    CIDEr weighs words by inverse document frequency, so a single example has no CIDEr.
    """
    predictions = {i: [tokenize(text)] for i, (text, _) in enumerate(pairs)}
    references = {i: [tokenize(text) for text in texts] for i, (_, texts) in enumerate(pairs)}
    cider = import_extra("pycocoevalcap.cider.cider").Cider()
    rouge = import_extra("pycocoevalcap.rouge.rouge").Rouge()
    bleu = import_extra("pycocoevalcap.bleu.bleu").Bleu(4)
    has_words = len(pairs) > 1 and any(text for texts in references.values() for text in texts)
    cider_E = cider.compute_score(references, predictions)[1] if has_words else np.full(len(pairs), np.nan)
    rouge_E = rouge.compute_score(references, predictions)[1]
    metrics: dict[str, Metric] = {"cider": mean(cider_E), **_bleu(predictions, references), "rouge_l": mean(rouge_E)}
    metrics["exact_match"] = mean([_is_exact_match(*pair) for pair in pairs])
    bleu_scores = bleu.compute_score(references, predictions, verbose=0)[0]
    library_values = dict(zip([f"bleu_{n}" for n in range(1, 5)], bleu_scores, strict=True))
    if meteor:
        library_values["meteor"], meteor_E = _meteor(predictions, references)
        metrics["meteor"] = mean(meteor_E)
    return MetricValues(metrics, np.asarray(rouge_E, dtype=float), library_values)


def _meteor(predictions: dict[int, list[str]], references: dict[int, list[str]]) -> tuple[float, list[float]]:
    """Compute METEOR with pycocoevalcap's Java program, over all examples and for each."""
    if shutil.which("java") is None:
        raise MissingPackageError(
            "`--meteor` needs Java, which is not installed", "install a Java runtime, or remove `--meteor`"
        )
    scorer = import_extra("pycocoevalcap.meteor.meteor").Meteor()
    program = scorer.meteor_p
    try:
        overall, by_example = scorer.compute_score(references, predictions)
    except (ValueError, OSError) as error:
        scorer.lock.release()  # an aborted `compute_score` holds it, and `Meteor.__del__` acquires it
        raise UserError(
            "the METEOR program ended early", "check that Java has 2 GB of memory, or remove `--meteor`"
        ) from error
    finally:
        for stream in (program.stdin, program.stdout, program.stderr):
            stream.close()
    return float(overall), list(by_example)


def _bleu(predictions: dict[int, list[str]], references: dict[int, list[str]]) -> dict[str, Metric]:
    scorer = import_extra("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=4)
    for i, texts in predictions.items():
        scorer += (texts[0], references[i])
    matched = np.array([counts["correct"] for counts in scorer.ctest], dtype=float)
    predicted = np.array([counts["guess"] for counts in scorer.ctest], dtype=float)
    lengths = [[counts["testlen"], _closest_length(counts["testlen"], counts["reflen"])] for counts in scorer.ctest]
    lengths_E2 = np.array(lengths, dtype=float)
    return {f"bleu_{n}": Bleu(matched[:, :n], predicted[:, :n], lengths_E2) for n in range(1, 5)}


def _closest_length(length: int, lengths: Sequence[int]) -> int:
    return min((abs(each - length), each) for each in lengths)[1]


def _is_exact_match(text: str, references: Sequence[str]) -> float:
    return float(_normalize_spaces(text) in {_normalize_spaces(each) for each in references})


def _normalize_spaces(text: str) -> str:
    return " ".join(text.split())


def ocr_metrics(pairs: Sequence[TextPair]) -> MetricValues:
    """Compute character and word error rate over all text, ANLS and exact match.

    Of several references the one with the fewest errors counts. White space counts as one space.
    """
    edits, lengths, word_edits, word_counts = zip(*(_errors(*pair) for pair in pairs), strict=True)
    metrics: dict[str, Metric] = {
        "cer": ratio(edits, lengths, higher_is_better=False),
        "wer": ratio(word_edits, word_counts, higher_is_better=False),
        "anls": mean([anls(*pair) for pair in pairs]),
        "exact_match": mean([_is_exact_match(*pair) for pair in pairs]),
    }
    quality = [1 - min(1.0, errors / max(length, 1)) for errors, length in zip(edits, lengths, strict=True)]
    return MetricValues(metrics, np.asarray(quality))


def _errors(text: str, references: Sequence[str]) -> tuple[int, int, int, int]:
    """Count character errors, characters, word errors and words against the closest reference."""
    jiwer = import_extra("jiwer")

    def count_errors(reference: str) -> tuple[int, int, int, int]:
        counts: list[int] = []
        for process in (jiwer.process_characters, jiwer.process_words):
            aligned = process(_normalize_spaces(reference), _normalize_spaces(text))
            wrong = aligned.substitutions + aligned.deletions
            counts += [wrong + aligned.insertions, wrong + aligned.hits]
        return counts[0], counts[1], counts[2], counts[3]

    return min(map(count_errors, references), key=lambda counts: (counts[0] / max(counts[1], 1), counts))


def similarity(text: str, reference: str) -> float:
    """Return the normalized Levenshtein similarity: 1 less the edits per character of the longer text."""
    return float(import_extra("rapidfuzz.distance").Levenshtein.normalized_similarity(text, reference))


def anls(text: str, references: Sequence[str]) -> float:
    """Return the similarity to the closest reference, in lower case; 0 if it is below 0.5."""
    best = max(similarity(_normalize_spaces(text).lower(), _normalize_spaces(each).lower()) for each in references)
    return best if best >= 0.5 else 0.0


_ARTICLES = {"a", "an", "the"}
_DIGITS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())} | {
    "none": "0"
}
_MIN_VOTES = 10


def vqa_metrics(pairs: Sequence[TextPair]) -> MetricValues:
    """Compute accuracy, ANLS and exact match of short answers.

    Accuracy ignores case, punctuation, articles and spelled-out digits. Any reference counts in full; ten or more
    references are votes, and an answer of fewer than three of them counts in part, as in VQA.
    """
    accuracy = [_vqa_accuracy(*pair) for pair in pairs]
    metrics: dict[str, Metric] = {
        "accuracy": mean(accuracy),
        "anls": mean([anls(*pair) for pair in pairs]),
        "exact_match": mean([_is_exact_match(*pair) for pair in pairs]),
    }
    return MetricValues(metrics, np.asarray(accuracy))


def _vqa_accuracy(text: str, references: Sequence[str]) -> float:
    votes = [_normalize_answer(each) == _normalize_answer(text) for each in references]
    if len(votes) < _MIN_VOTES:
        return float(any(votes))
    return float(np.mean([min(1.0, (sum(votes) - vote) / 3) for vote in votes]))


def _normalize_answer(text: str) -> str:
    letters = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,'-]", " ", text.lower()).replace("'", "")
    return " ".join(_DIGITS.get(word, word) for word in letters.split() if word not in _ARTICLES)
