from dataclasses import replace

from PIL import Image

from florence2.data.sample import Prediction, Sample
from florence2.model.locations import decode
from florence2.model.tasks import find_task
from florence2.pipeline.class_splitter import ClassSplitter
from florence2.pipeline.task_pipeline import TaskPipeline

TASK = find_task("open_vocabulary_detection")
SIZE = (1000, 1000)


def sample(words: str) -> Sample:
    return Sample("a.png", Image.new("RGB", SIZE), TASK.token, words)


def say(asked: Sample, text: str, score: float = 0.5) -> Prediction:
    answer = decode(TASK, text, SIZE, score=lambda _: score)
    return Prediction(*asked.key, text=text, answer=answer, num_tokens=5, score=score)


def box(number: int) -> str:
    return f"<loc_{number}>" * 4


def test_classes_are_asked_one_by_one_and_told_in_one_line():
    classes = ClassSplitter(TaskPipeline.parse([TASK.token], "cat, dog , cat,"))
    cat, dog = classes.split([sample("cat, dog , cat,")])
    assert (cat.input, dog.input) == ("cat", "dog")
    others = [say(each, f"{each.input}{box(9)}") for each in (cat, dog)]
    said = [say(dog, f"nothing at all<poly>{box(3)}</poly>", 0.25), say(cat, f"words cat{box(1)}{box(2)}so")]
    said = [replace(each, alternatives=(other,)) for each, other in zip(said, others[::-1], strict=True)]
    assert list(classes.merge(said[:1])) == []
    [whole] = classes.merge(said[1:])
    assert whole.key == sample("cat, dog , cat,").key
    assert whole.text == f"words cat{box(1)}{box(2)}nothing at all<poly>{box(3)}</poly>"
    assert whole.answer.labels == ["words cat", "words cat", "nothing at all"]
    assert whole.answer.scores == [0.5, 0.5, 0.25]
    unscored = tuple(replace(item, score=None) for item in whole.answer)
    assert unscored == decode(TASK, whole.text, SIZE).items
    assert (whole.num_tokens, round(whole.score, 4)) == (10, 0.3536)
    assert [other.text for other in whole.alternatives] == [f"cat{box(9)}dog{box(9)}"]


def test_one_that_fails_fails_the_whole():
    classes = ClassSplitter(TaskPipeline.parse([TASK.token], "cat, dog"))
    cat, dog = classes.split([sample("cat, dog")])
    [whole] = classes.merge([say(cat, ""), Prediction(*dog.key, error="torn")])
    assert (whole.key, whole.error) == (sample("cat, dog").key, "torn")


def test_what_is_asked_by_itself_too_is_told_twice():
    classes = ClassSplitter(TaskPipeline.parse([f"{TASK.token}cat, dog", f"{TASK.token}cat, cow", f"{TASK.token}cow"]))
    asked = list(classes.split([sample("cat, dog"), sample("cat, cow"), sample("cow")]))
    assert [each.input for each in asked] == ["cat", "dog", "cow", "cow"]
    told = [each.input for each in classes.merge(say(each, f"x{box(1)}") for each in asked)]
    assert told == ["cat, dog", "cow", "cat, cow", "cow"]


def test_only_what_the_command_line_asks_is_parted():
    for task, words in (("caption_to_phrase_grounding", "a cat, a dog"), (TASK.token, "cat<and>dog")):
        plan = TaskPipeline.parse([task], words)
        asked = Sample("a.png", Image.new("RGB", SIZE), plan.steps[0].task.token, words)
        assert [each.input for each in ClassSplitter(plan).split([asked])] == [words]
    classes = ClassSplitter(TaskPipeline.parse([TASK.token], "cat, dog"))
    assert [each.input for each in classes.split([sample("a cat, a dog")])] == ["a cat, a dog"]
