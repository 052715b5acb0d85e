"""The questions, and how an answer is read out of a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from zamba_compat.errors import CheckpointError
from zamba_compat.inference.generation import Sampling, generate
from zamba_compat.inference.loading import Loaded
from zamba_compat.inference.questions import Question, ask, extract, is_right, read_questions


def test_the_set() -> None:
    questions = read_questions()
    assert len(questions) == len({one.question for one in questions}) == 20
    assert sum(one.answer in ("yes", "no") for one in questions) == 2


@pytest.mark.parametrize(
    ("text", "wanted", "got", "right"),
    [
        ("972", "972", "972", True),
        ("36 * 27 = 972.", "972", "972", True),
        ("It is 972, or is it 973?", "972", "972", True),
        ("Maybe 970 or 971", "972", "971", False),
        ("1,972 dollars", "1972", "1972", True),
        ("$9.50.", "9.50", "9.50", True),
        ("-3", "3", "-3", False),
        ("x = .5", "0.5", ".5", True),
        ("none", "5", None, False),
        ("", "5", None, False),
        ("Yes, it is.", "yes", "yes", True),
        ("I do not know. No.", "no", "no", True),
        ("No. Yes.", "yes", "no", False),
        ("nobody knows yesterday", "no", None, False),
    ],
)
def test_extraction(text: str, wanted: str, got: str | None, right: bool) -> None:
    assert extract(text, wanted) == got
    assert is_right(got, wanted) == right


def test_asking(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question("What is 1 + 1?", "2")
    text = generate(tiny, "Question: What is 1 + 1?\nAnswer:", Sampling(max_new_tokens=8)).text
    (found,) = ask(tiny, [question], max_new_tokens=8)
    assert (found.question, found.wanted, found.text) == ("What is 1 + 1?", "2", text)
    assert found.correct == is_right(extract(text, "2"), "2")
    monkeypatch.setattr(tiny.tokenizer, "chat_template", "{{ bos_token }}{{ messages[0].content }}!")
    (found,) = ask(tiny, [question], max_new_tokens=8)
    assert found.text == generate(tiny, "What is 1 + 1?!", Sampling(max_new_tokens=8)).text


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no set of questions"), ("[]", "has no questions"), ('[{"question": "a"}]', "no set of questions"),
     ('["a"]', "no set of questions"), ('[{"question": "a", "answer": "blue"}]', "neither yes, no nor a number")],
)  # fmt: skip
def test_refused_sets(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_questions(tmp_path / "set.json")
