"""Twenty questions of arithmetic and logic with one right answer each, and how an answer is read out of a text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_compat.errors import CheckpointError

from .generation import Sampling, generate
from .loading import Loaded
from .processes import spread

if TYPE_CHECKING:
    from torch import Tensor

SET = Path(__file__).with_name("questions.json")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_CLOSE = 0.01  # numbers nearer than this are equal
MOST_TOKENS = 64  # of an answer


@dataclass(frozen=True)
class Question:
    """Attributes: what is asked; "yes", "no" or a number as text."""

    question: str
    answer: str


@dataclass(frozen=True)
class Answered:
    """Attributes: the question, the answer wanted, the one the text gives (None: none), the text, whether right."""

    question: str
    wanted: str
    got: str | None
    text: str
    correct: bool


def read_questions(path: Path = SET) -> list[Question]:
    """A set of questions: a JSON list of {"question": ..., "answer": ...}.

    Raises:
        CheckpointError: it is no such list.
    """
    remedy = 'Give a JSON list of {"question": "...", "answer": "yes", "no" or a number}.'
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        questions = [Question(str(one["question"]), str(one["answer"]).replace(",", "")) for one in found]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"It is no set of questions: {error!r}.", where=str(path), remedy=remedy) from error
    odd = [one.question for one in questions if not (_WORD.fullmatch(one.answer) or _NUMBER.fullmatch(one.answer))]
    if odd or not questions:
        what = f"The answer to {odd[0]!r} is neither yes, no nor a number." if odd else "It has no questions."
        raise CheckpointError(what, where=str(path), remedy=remedy)
    return questions


def extract(text: str, wanted: str) -> str | None:
    """The answer that a text gives to a question of the wanted answer's kind, None where it gives none.

    Of numbers, one equal to the wanted one counts wherever it stands in the text, else the last; of words, the first
    yes or no. It is lenient: it judges whether the model found the answer, not whether it stopped there.
    """
    if wanted.lower() in ("yes", "no"):
        word = _WORD.search(text)
        return word[1].lower() if word else None
    numbers = [number.replace(",", "") for number in _NUMBER.findall(text)]
    equal = (number for number in numbers if abs(float(number) - float(wanted)) < _CLOSE)
    return next(equal, numbers[-1] if numbers else None)


def is_right(got: str | None, wanted: str) -> bool:
    """Whether an extracted answer is the wanted one."""
    if got is None:
        return False
    if wanted.lower() in ("yes", "no"):
        return got.lower() == wanted.lower()
    return abs(float(got) - float(wanted)) < _CLOSE


def ask(loaded: Loaded, questions: list[Question], *, max_new_tokens: int = MOST_TOKENS) -> list[Answered]:
    """Every question, greedily and one by one, through the chat template where there is one."""

    def one(question: Question) -> Answered:
        answer = generate(loaded, _prompt(loaded, question.question), Sampling(max_new_tokens=max_new_tokens))
        got = extract(answer.text, question.answer)
        return Answered(question.question, question.answer, got, answer.text, is_right(got, question.answer))

    return spread(questions, one)


def _prompt(loaded: Loaded, question: str) -> str | Tensor:
    if not getattr(loaded.tokenizer, "chat_template", None):
        return f"Question: {question}\nAnswer:"
    from .chatting import template_ids

    return template_ids(loaded, [{"role": "user", "content": question}])
