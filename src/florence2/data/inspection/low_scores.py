"""Removal of predicted objects with a low score from the rows of a dataset: `florence2 data convert --min_score`."""

from collections import Counter
from collections.abc import Iterable, Iterator

from florence2.data.columns import TEXT_COLUMNS, ColumnMapping, DatasetRow
from florence2.errors import DatasetError
from florence2.model.answer import Answer
from florence2.model.locations import encode
from florence2.model.tasks import OutputType


def remove_low_scores(
    rows: Iterable[DatasetRow], columns: ColumnMapping, min_score: float, removed: Counter[str]
) -> Iterator[DatasetRow]:
    """Yield rows without the objects whose score is below `min_score`, and count those in `removed`.

    An object without a score is removed, too. Rows of text tasks stay as they are. Raises DatasetError at the end where
    no object has a score.
    """
    num_scored, where = 0, ""
    for row in rows:
        answer = row.row.get("answer")
        task, _ = columns.task_and_input(row.row, row.where)
        where = where or row.where
        if not isinstance(answer, dict) or task.output_type is OutputType.TEXT or not row.exists:
            yield row
            continue
        value = Answer.from_dict(answer, task.output_type)
        remaining = value.filter(score=min_score)
        num_scored += sum(score is not None for score in value.scores)
        removed[f"objects with a score below {min_score:g}"] += len(value) - len(remaining)
        if len(value) == len(remaining):
            yield row
            continue
        other_columns = {name: each for name, each in row.row.items() if name not in (*TEXT_COLUMNS, columns.text)}
        text = encode(task, remaining, row.image.size())
        yield row._replace(row={**other_columns, "text": text, "answer": remaining.to_dict()})
    if not num_scored:
        raise DatasetError(f"`--min_score` needs scores, and no object has one, the first row is {where}", "remove it")
