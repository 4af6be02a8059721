"""Whether a run may begin or go on in a folder: a pure choice."""

import json
from pathlib import Path

import pytest

from runtime.embedding.record import Found, Record, decide, differences
from runtime.errors import OutputError

OUT = Path("out")
MINE = Record({"model": "test/a", "fingerprint": "f", "dtype": "float32", "shapes": ((48,),)}, {"backend": "onnx"})
SAME = Record.from_text(MINE.to_text(), OUT)
OTHER = Record({**MINE.asked, "model": "test/b"}, {})
CHANGED = Record({**MINE.asked, "fingerprint": "g"}, {})


@pytest.mark.parametrize(
    ("found", "new", "resume", "overwrite"),
    [
        (Found(None, 0, []), "begin", "begin", "begin"),
        (Found(SAME, 0, []), "--resume", "continue", "begin"),
        (Found(SAME, 7, []), "--resume", "continue", "begin"),
        (Found(OTHER, 7, []), 'model was "test/b"', 'model was "test/b", and is now "test/a"', "begin"),
        (Found(CHANGED, 7, []), "another one", "the input is another one: files of other names", "begin"),
        (Found(None, 7, []), "no _embed.json", "no _embed.json", "begin"),
        (Found(None, 0, ["thesis.tex"]), "thesis.tex", "thesis.tex", "thesis.tex"),
        (Found(None, 3, ["a", "b", "c", "d"]), "a, b, c, ...", "a, b, c, ...", "a, b, c, ..."),
    ],
)
def test_the_decision(found: Found, new: str, resume: str, overwrite: str) -> None:
    for mode, said in (("new", new), ("resume", resume), ("overwrite", overwrite)):
        if said in ("begin", "continue"):
            assert decide(OUT, found, MINE, mode) == said
        else:
            with pytest.raises(OutputError) as error:
                decide(OUT, found, MINE, mode)
            assert said in str(error.value)
            assert "out " in str(error.value)


def test_a_folder_of_the_same_run_names_both_ways_to_go_on() -> None:
    with pytest.raises(OutputError, match=r"holds 7 parts of this very run\. Go on with --resume, or .* --overwrite"):
        decide(OUT, Found(SAME, 7, []), MINE, "new")


def test_another_backend_may_go_on() -> None:
    assert decide(OUT, Found(Record(SAME.asked, {"backend": "openvino"}), 1, []), MINE, "resume") == "continue"


def test_what_only_one_side_knows_is_a_difference() -> None:
    assert differences({"a": 1}, {"a": 1, "batch_size": 8}) == ["batch_size was null, and is now 8"]


def test_the_runs_that_worked_at_a_folder_are_kept_and_decide_nothing() -> None:
    first, second = {"backend": "onnx", "when": "then"}, {"backend": "openvino", "when": "now"}
    begun = Record.from_text(Record(MINE.asked, MINE.made, (first,)).to_text(), OUT)
    again = Record(MINE.asked, {"backend": "openvino"}, (second,))

    assert decide(OUT, Found(begun, 1, []), again, "resume") == "continue"
    assert list(Record.from_text(begun.followed_by(again).to_text(), OUT).runs) == [first, second]
    assert begun.followed_by(again).made == MINE.made


def test_a_record_of_before_runs_were_kept_is_read() -> None:
    data = json.loads(MINE.to_text())
    del data["runs"]
    assert Record.from_text(json.dumps(data), OUT).runs == ()


def test_a_record_is_read_as_it_was_written() -> None:
    assert differences(SAME.asked, MINE.asked) == []
    assert SAME.made == MINE.made


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', '{"schema": 1, "asked": 3, "made": {}}'])
def test_a_damaged_record_says_what_to_do(text: str) -> None:
    with pytest.raises(OutputError, match=r"out is damaged: .*Begin again with --overwrite, or choose another folder"):
        Record.from_text(text, OUT)


def test_a_record_of_a_newer_release_is_not_misread() -> None:
    with pytest.raises(OutputError, match="schema 2, this release reads 1"):
        Record.from_text(MINE.to_text().replace('"schema": 1', '"schema": 2'), OUT)
