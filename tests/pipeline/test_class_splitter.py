from dataclasses import replace

from PIL import Image

from florence2.data.sample import Prediction, Sample
from florence2.model.locations import decode
from florence2.model.tasks import find_task
from florence2.pipeline.class_splitter import ClassSplitter
from florence2.pipeline.task_pipeline import TaskPipeline

TASK = find_task("open_vocabulary_detection")
SIZE = (1000, 1000)


def make_sample(words: str) -> Sample:
    return Sample("a.png", Image.new("RGB", SIZE), TASK.token, words)


def predict(sample: Sample, text: str, score: float = 0.5) -> Prediction:
    answer = decode(TASK, text, SIZE, score=lambda _: score)
    return Prediction(*sample.key, text=text, answer=answer, num_tokens=5, score=score)


def box(number: int) -> str:
    return f"<loc_{number}>" * 4


def test_predictions_of_classes_are_merged():
    splitter = ClassSplitter(TaskPipeline.parse([TASK.token], "cat, dog , cat,"))
    cat, dog = splitter.split([make_sample("cat, dog , cat,")])
    assert (cat.input, dog.input) == ("cat", "dog")
    others = [predict(each, f"{each.input}{box(9)}") for each in (cat, dog)]
    predictions = [
        predict(dog, f"nothing at all<poly>{box(3)}</poly>", 0.25),
        predict(cat, f"words cat{box(1)}{box(2)}so"),
    ]
    predictions = [replace(each, alternatives=(other,)) for each, other in zip(predictions, others[::-1], strict=True)]
    assert list(splitter.merge(predictions[:1])) == []
    [merged] = splitter.merge(predictions[1:])
    assert merged.key == make_sample("cat, dog , cat,").key
    assert merged.text == f"words cat{box(1)}{box(2)}nothing at all<poly>{box(3)}</poly>"
    assert merged.answer.labels == ["words cat", "words cat", "nothing at all"]
    assert merged.answer.scores == [0.5, 0.5, 0.25]
    unscored = tuple(replace(item, score=None) for item in merged.answer)
    assert unscored == decode(TASK, merged.text, SIZE).items
    assert (merged.num_tokens, round(merged.score, 4)) == (10, 0.3536)
    assert [other.text for other in merged.alternatives] == [f"cat{box(9)}dog{box(9)}"]


def test_failed_class_fails_the_merged_prediction():
    splitter = ClassSplitter(TaskPipeline.parse([TASK.token], "cat, dog"))
    cat, dog = splitter.split([make_sample("cat, dog")])
    [merged] = splitter.merge([predict(cat, ""), Prediction(*dog.key, error="cut")])
    assert (merged.key, merged.error) == (make_sample("cat, dog").key, "cut")


def test_shared_classes_are_predicted_once():
    splitter = ClassSplitter(TaskPipeline.parse([f"{TASK.token}cat, dog", f"{TASK.token}cat, cow", f"{TASK.token}cow"]))
    split_samples = list(splitter.split([make_sample("cat, dog"), make_sample("cat, cow"), make_sample("cow")]))
    assert [each.input for each in split_samples] == ["cat", "dog", "cow", "cow"]
    inputs = [each.input for each in splitter.merge(predict(each, f"x{box(1)}") for each in split_samples)]
    assert inputs == ["cat, dog", "cow", "cat, cow", "cow"]


def test_only_inputs_of_the_pipeline_are_split():
    for task, words in (("caption_to_phrase_grounding", "a cat, a dog"), (TASK.token, "cat<and>dog")):
        pipeline = TaskPipeline.parse([task], words)
        sample = Sample("a.png", Image.new("RGB", SIZE), pipeline.steps[0].task.token, words)
        assert [each.input for each in ClassSplitter(pipeline).split([sample])] == [words]
    splitter = ClassSplitter(TaskPipeline.parse([TASK.token], "cat, dog"))
    assert [each.input for each in splitter.split([make_sample("a cat, a dog")])] == ["a cat, a dog"]
