from pathlib import Path

import pytest

from florence2.data.sample import Prediction, Sample
from florence2.errors import UserError
from florence2.metrics.eval_set import make_eval_set


def caption_samples(count: int) -> list[Sample]:
    """Create samples with two references each."""
    return [
        Sample(f"{i}.png", Path(f"{i}.png"), "<CAPTION>", target=f"{which} caption of image {i} number {i}")
        for i in range(count)
        for which in ("first", "second")
    ]


def test_eval_set_selects_samples_evenly_with_all_references():
    eval_set = make_eval_set(caption_samples(10), ["cider"], max_samples=5)
    assert [sample.id for sample in eval_set.samples] == [f"{i}.png" for i in (0, 0, 2, 2, 4, 4, 6, 6, 8, 8)]
    assert [sample.id for sample in eval_set.unlabeled_samples] == [f"{i}.png" for i in (0, 2, 4, 6, 8)]


def test_eval_set_scores_named_metrics():
    samples = caption_samples(3)
    eval_set = make_eval_set(samples, ["rouge_l", "exact_match"], max_samples=3)
    right = Prediction("0.png", "<CAPTION>", text=samples[1].target or "")
    assert eval_set.scores([right])["exact_match"] == pytest.approx(1 / 3)
    assert list(eval_set.scores([right])) == ["rouge_l", "exact_match"]


def test_metric_without_value_is_the_worst_score():
    ocr = [Sample("a.png", Path("a.png"), "<OCR>", target="exit")]
    text = make_eval_set([*ocr, *caption_samples(2)], ["cer", "cider", "ocr_exact_match"], max_samples=3)
    assert text.higher_is_better == {"cer": False, "cider": True, "ocr_exact_match": True}
    scores = text.scores([Prediction("a.png", "<OCR>", error="truncated")])
    assert scores == {"cer": 1.0, "cider": pytest.approx(0, abs=1e-6), "ocr_exact_match": 0.0}


def test_unknown_metric_is_refused_with_closest_name():
    with pytest.raises(UserError, match="`--eval_metrics cidre` is not a metric of these tasks") as caught:
        make_eval_set(caption_samples(3), ["cidre"], max_samples=3)
    assert "cider" in caught.value.hint
