"""Conversations."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from zamba_compat.errors import CheckpointError
from zamba_compat.inference import chatting
from zamba_compat.inference.chatting import HELP, Chat, converse, template_ids
from zamba_compat.inference.generation import Sampling
from zamba_compat.inference.loading import Loaded

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    "{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
FEW = Sampling(max_new_tokens=4)


@pytest.fixture
def talker(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.setattr(tiny.tokenizer, "chat_template", TEMPLATE)
    return tiny


def test_history(talker: Loaded) -> None:
    chat = Chat(talker, FEW, "Be brief.")
    written: list[str] = []
    answers = converse(chat, ["hello\n", "\n", "again\n"], written.append)
    roles = [message["role"] for message in chat.messages]
    assert roles == ["user", "assistant", "user", "assistant"] and len(answers) == 2
    assert "".join(written) == "".join(f"{answer.text}\n" for answer in answers)
    wanted = (
        f"<bos>system: Be brief.\n<bos>user: hello\n<bos>assistant: {answers[0].text}\n<bos>user: again\nassistant: "
    )
    before = [{"role": "system", "content": "Be brief."}, *chat.messages[:-1]]
    assert talker.tokenizer.decode(template_ids(talker, before)[0]) == wanted
    assert answers[1].prompt_tokens == template_ids(talker, before).shape[1]


def test_commands(talker: Loaded) -> None:
    chat = Chat(talker, FEW)
    written: list[str] = []
    converse(chat, ["hello", "/reset", "/what"], written.append)
    assert chat.messages == [] and written[-1] == f"{HELP}\n"
    converse(chat, ["hello", "/system Speak French.", "/exit", "never"], written.append)
    assert chat.system == "Speak French." and chat.messages == []


def test_a_refused_turn_does_not_end_it(talker: Loaded) -> None:
    written: list[str] = []
    most = talker.model.config.max_position_embeddings
    chat = Chat(talker, FEW)
    answers = converse(chat, ["a" * most, "hello"], written.append)
    assert "/reset forgets it" in written[0] and len(answers) == 1
    (refused,) = chat.refused
    assert refused["content"] == "a" * most and f"({refused['error']})" == written[0]


def test_interrupted_turn_leaves_the_history(talker: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(talker, FEW)
    chat.ask("hello")
    before = list(chat.messages)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chatting, "generate", stop)
    with pytest.raises(KeyboardInterrupt):
        chat.ask("more")
    assert chat.messages == before


def test_refused(tiny: Loaded, talker: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="chat template refuses: late"):
        template_ids(talker, [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}])
    small = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=8))
    with pytest.raises(CheckpointError, match="tokens, the model takes 8"):
        Chat(dataclasses.replace(talker, model=small)).ask("a long question")
    monkeypatch.setattr(tiny.tokenizer, "chat_template", None)
    with pytest.raises(CheckpointError, match="no chat template"):
        Chat(tiny)
