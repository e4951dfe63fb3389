"""Documents from JSON Lines: one object a line.

```json
{"id"?: str, "title"?: str, "text": str, "source"?: str, "entities"?: [str],
 "questions": [{"question": str, "answer": str}], "held_out_questions"?: [{"question": str, "answer": str}]}
```
Blank lines are skipped and counted. Lines end with LF or CRLF; other Unicode line separators belong to the text.
"""

from __future__ import annotations

from evaluation.data_config import JsonLinesData
from evaluation.loaders.files import JsonSyntaxError, parse_json, read_data_file
from evaluation.loaders.intake import Intake
from evaluation.tasks import KnowledgeTask


def load_json_lines(config: JsonLinesData) -> tuple[KnowledgeTask, ...]:
    """Return the tasks of a JSON Lines file, in its order.

    Raises:
        InputError: The file cannot be read, or at least one line is bad; the message lists all bad lines.
    """
    content = read_data_file(config.path)
    intake = Intake(str(config.path))
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            raw = parse_json(line)
        except JsonSyntaxError as error:
            intake.refuse(place, str(error))
            continue
        if isinstance(raw, dict):
            intake.claim_id(place, raw.get("id"))
        if (row := intake.parse(place, raw)) is not None:
            intake.add(place, row)
    return intake.tasks()
