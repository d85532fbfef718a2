import math
import shutil

import jiwer
import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from florence2.errors import UserError
from florence2.metrics.bootstrap import import_extra
from florence2.metrics.text import anls, caption_metrics, ocr_metrics, tokenize, vqa_metrics

# The output of Stanford's PTBTokenizer 3.4.1 as pycocoevalcap runs it, without punctuation.
PTB = [
    ("A man's hat isn't red; it's \"blue\" (or green).", "a man 's hat is n't red it 's blue -lrb- or green -rrb-"),
    ("Don't you can't won't I'm we've they'd she'll", "do n't you ca n't wo n't i 'm we 've they 'd she 'll"),
    (
        "A t-shirt, a well-known road - 1,000 people -- and $5.00 & 50% off!",
        "a t-shirt a well-known road 1,000 people and $ 5.00 & 50 % off",
    ),
    (
        "Mr. Smith and Dr. Jones, e.g. the U.S. flag... what?! Yes.",
        "mr. smith and dr. jones e.g. the u.s. flag what ?! yes",
    ),
    ("black/white cat w/ dog 1/2 cup 10:30 am 12:30pm", "black/white cat w / dog 1/2 cup 10:30 am 12:30 pm"),
    ('He said \'hello\' and "bye". "It\'s fine," she said.', "he said hello and bye it 's fine she said"),
    ("e-mail me@x.com or www.example.com/path #tag @user", "e-mail me@x.com or www.example.com/path #tag @user"),
    ("cannot gonna wanna gotta lemme gimme", "can not gon na wan na got ta lem me gim me"),
    ("Café naïve “curly quotes” ‘single’ – dash — em… ellipsis", "café naïve curly quotes single dash em ellipsis"),
    ("a dog.a cat.  two  spaces\ttab.", "a dog.a cat two spaces tab"),
    ("No. 5 is St. Mary's Ave. in the 1990s, '90s style.", "no. 5 is st. mary 's ave. in the 1990s '90s style"),
    ("red, white, and blue;green:yellow", "red white and blue green yellow"),
    ("3rd place, 20-30 people, 1990-2000, x-ray", "3rd place 20-30 people 1990-2000 x-ray"),
    ('Text reads "STOP!" in red.', "text reads stop in red"),
    ("women's children's James' boss's", "women 's children 's james boss 's"),
    ("half-eaten pizza/ pasta and/or salad", "half-eaten pizza / pasta and/or salad"),
    ("...", ""),
]

PREDICTIONS = ["a cat sits on a mat", "two dogs run", "a red bus in the rain", "nothing"]
REFERENCES = [
    ["a cat sits on the mat", "a cat on a mat"],
    ["two dogs are running", "dogs run on grass"],
    ["a red bus drives in the rain"],
    ["an old man with a hat"],
]


@pytest.mark.parametrize(("text", "tokens"), PTB)
def test_tokenize_equals_java_tokenizer(text, tokens):
    assert tokenize(text) == tokens


def test_tokenize_splits_scripts_without_spaces_by_character():
    assert tokenize("猫が 寝る。") == "猫 が 寝 る 。"


def test_caption_metrics_equal_pycocoevalcap():
    found = caption_metrics(list(zip(PREDICTIONS, REFERENCES, strict=True))).values()
    predictions = {i: [text] for i, text in enumerate(PREDICTIONS)}
    references = dict(enumerate(REFERENCES))
    assert found["cider"] == pytest.approx(Cider().compute_score(references, predictions)[0], abs=1e-12)
    assert found["rouge_l"] == pytest.approx(Rouge().compute_score(references, predictions)[0], abs=1e-12)
    bleu = Bleu(4).compute_score(references, predictions, verbose=0)[0]
    assert [found[f"bleu_{n}"] for n in range(1, 5)] == pytest.approx(bleu, abs=1e-12)
    assert 0 < found["cider"] < 10
    assert found["exact_match"] == 0


def test_weighted_bleu_equals_bleu_of_repeated_examples():
    pairs = list(zip(PREDICTIONS, REFERENCES, strict=True))
    indices = [0, 0, 2, 3]
    weights = np.array([[2.0, 0, 1, 1]])
    metrics = caption_metrics(pairs).metrics
    repeated = caption_metrics([pairs[i] for i in indices]).values()
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
        assert metrics[name].compute(weights)[0] == pytest.approx(repeated[name], abs=1e-12)


def test_perfect_captions_have_cider_10_and_bleu_1():
    texts = ["A cat on a mat, asleep.", "Two dogs run in the park.", "An empty street at night."]
    found = caption_metrics([(text, [text]) for text in texts]).values()
    assert found["cider"] == pytest.approx(10)
    assert found["bleu_4"] == pytest.approx(1)
    assert found["rouge_l"] == found["exact_match"] == 1


def test_empty_predictions_score_0():
    found = caption_metrics([("", ["a cat"]), ("", ["a dog"])]).values()
    assert {name: round(value, 6) for name, value in found.items()} == dict.fromkeys(found, 0.0)


def test_single_caption_has_no_cider():
    assert math.isnan(caption_metrics([("a cat", ["a cat"])]).values()["cider"])


def test_references_without_words_have_no_cider():
    assert math.isnan(caption_metrics([("a", ["..."]), ("b", ["!"])]).values()["cider"])


def test_error_rates_equal_jiwer_over_all_text():
    predictions, references = ["STOP here", "exit", "abc"], ["STOP there", "EXIT 12", "abc"]
    found = ocr_metrics([(p, [r]) for p, r in zip(predictions, references, strict=True)]).values()
    assert found["cer"] == pytest.approx(jiwer.cer(references, predictions))
    assert found["wer"] == pytest.approx(jiwer.wer(references, predictions))
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["anls"] == pytest.approx((9 / 10 + 4 / 7 + 1) / 3)  # in lower case: `exit` of `exit 12`


@pytest.mark.parametrize(
    ("prediction", "reference", "cer"),
    [
        ("", "abc", 1.0),
        ("abc", "abc", 0.0),
        ("abcdef", "abc", 1.0),
        ("a  b\n c", "a b c", 0.0),  # white space is one space
    ],
)
def test_character_error_rate(prediction, reference, cer):
    assert ocr_metrics([(prediction, [reference])]).values()["cer"] == pytest.approx(cer)


def test_empty_references_have_no_error_rate():
    found = ocr_metrics([("", [""]), ("made up", [""])])
    assert math.isnan(found.values()["cer"])
    assert found.quality_E.tolist() == [1, 0]


def test_error_rate_uses_closest_of_several_references():
    found = ocr_metrics([("abd", ["xyz", "abc"])]).values()
    assert found["cer"] == pytest.approx(1 / 3)


def test_lower_is_better_for_error_rates_alone():
    assert {name: m.higher_is_better for name, m in ocr_metrics([("a", ["a"])]).metrics.items()} == {
        "cer": False,
        "wer": False,
        "anls": True,
        "exact_match": True,
    }


def test_anls_takes_strings_and_not_their_letters():
    assert anls("abc", ["abc"]) == 1
    assert anls("a", ["abc"]) == 0  # a similarity below 0.5 counts as 0
    assert anls("ABX", ["abc", "abd"]) == pytest.approx(2 / 3)
    assert anls("", [""]) == 1
    assert anls("", ["abc"]) == 0


@pytest.mark.parametrize(
    ("prediction", "references", "accuracy"),
    [
        ("The Cat.", ["cat"], 1),
        ("two", ["2"], 1),
        ("none", ["0"], 1),
        ("3.5", ["35"], 0),
        ("yes", ["no", "yes"], 1),
        ("", ["yes"], 0),
        ("red", ["red"] * 2 + ["blue"] * 8, 0.6),  # two of ten votes, each removed in turn: 8 * 2/3 + 2 * 1/3
        ("red", ["red"] * 4 + ["blue"] * 6, 1),
        ("no", ["yes"] * 8 + ["no"] * 2, 0.6),  # E7
        ("yes", ["yes"] * 8 + ["no"] * 2, 1),  # E7
        ("1", list("1231231231"), 1),  # E7
        ("2", list("1231231231"), 0.9),  # E7
    ],
)
def test_vqa_accuracy(prediction, references, accuracy):
    assert vqa_metrics([(prediction, references)]).values()["accuracy"] == pytest.approx(accuracy)


def test_missing_package_is_named_with_install_command():
    with pytest.raises(UserError) as caught:
        import_extra("no_such_package.inside")
    assert caught.value.what == "this metric needs `no-such-package`"
    assert caught.value.hint == "run `pip install 'florence2[evaluate]'`"


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR runs in Java")
def test_meteor_equals_pycocoevalcap() -> None:
    pairs = [("a cat on a mat", ["a cat sits on a mat", "a cat"]), ("two dogs", ["a red car"]), ("", ["a tree"])]
    scores = caption_metrics(pairs, meteor=True).values()
    program = import_extra("pycocoevalcap.meteor.meteor").Meteor()
    predictions = {i: [tokenize(text)] for i, (text, _) in enumerate(pairs)}
    references = {i: [tokenize(text) for text in right] for i, (_, right) in enumerate(pairs)}
    expected, _ = program.compute_score(references, predictions)
    for stream in (program.meteor_p.stdin, program.meteor_p.stdout, program.meteor_p.stderr):
        stream.close()
    assert scores["meteor"] == expected
    assert 0 < expected < 1
    assert "meteor" not in caption_metrics(pairs).values()


def test_meteor_without_java_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="`--meteor` needs Java"):
        caption_metrics([("a cat", ["a cat"])] * 2, meteor=True)
