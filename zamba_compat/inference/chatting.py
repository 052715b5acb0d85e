"""A conversation: the history goes through the model's chat template, whole, with every turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zamba_compat.errors import CheckpointError

from .generation import Generation, Sampling, generate
from .loading import Loaded

if TYPE_CHECKING:
    from torch import Tensor

HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or the end of input ends."


@dataclass
class Chat:
    """Attributes: the model; how to sample; the system message, "" for none; the messages so far.

    refused: what `converse` could not put to the model, {"content": the turn, "error": why}.
    """

    loaded: Loaded
    sampling: Sampling = field(default_factory=Sampling)
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_template(self.loaded)

    def ask(self, text: str, stream: Callable[[str], object] | None = None) -> Generation:
        """Say something, and add it and the answer to the history; an interrupted turn leaves the history as it was.

        Raises:
            CheckpointError: the conversation does not fit the template, or the model's positions.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = template_ids(self.loaded, self._all(messages))
        most = getattr(self.loaded.model.config, "max_position_embeddings", None)
        if most is not None and ids.shape[1] >= most:
            raise CheckpointError(
                f"The conversation has {ids.shape[1]} tokens, the model takes {most}.",
                where=self.loaded.name,
                remedy="/reset forgets it.",
            )
        answer = generate(self.loaded, ids, self.sampling, stream=stream)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer

    def _all(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages


def converse(
    chat: Chat, lines: Iterable[str], write: Callable[[str], object], answers: list[Generation] | None = None
) -> list[Generation]:
    """Run a conversation: each line is a turn or a command, answers go to `write` as they come.

    Args:
        answers: gets every answer, also where the conversation is interrupted.

    Returns:
        `answers`, or a list of its own.
    """
    answers = [] if answers is None else answers
    for line in lines:
        text = line.strip()
        command, _, rest = text.partition(" ")
        if not text:
            continue
        if command in ("/exit", "/quit"):
            break
        if command == "/reset":
            chat.messages = []
        elif command == "/system":
            chat.system, chat.messages = rest.strip(), []
        elif command.startswith("/"):
            write(f"{HELP}\n")
        else:
            try:
                answers.append(chat.ask(text, write))
            except CheckpointError as error:  # the conversation goes on: /reset is the remedy
                chat.refused.append({"content": text, "error": str(error)})
                write(f"({error})")
            write("\n")
    return answers


def require_template(loaded: Loaded) -> None:
    """Raises CheckpointError where the tokenizer has no chat template."""
    if not getattr(loaded.tokenizer, "chat_template", None):
        raise CheckpointError(
            "Its tokenizer has no chat template: it is a base model, or the template was lost in a merge.",
            where=loaded.name,
            remedy="Use zamba-compat generate, or copy chat_template.jinja of the instruct model beside the weights.",
        )


def template_ids(loaded: Loaded, messages: list[dict[str, str]]) -> Tensor:
    """Token ids [1, length] of a conversation, ready for the assistant's turn.

    Raises:
        CheckpointError: the template refuses the messages.
    """
    from jinja2 import TemplateError

    try:
        text = loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        remedy = "Does it take a system message? Leave --system out."
        raise CheckpointError(f"Its chat template refuses: {error}.", where=loaded.name, remedy=remedy) from error
    encoded = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    return encoded.input_ids.to(loaded.device)  # type: ignore[no-any-return]
