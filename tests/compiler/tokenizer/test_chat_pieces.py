"""Chat templates are split into words where that is all they are, and refused otherwise."""

import json

import pytest
from support.generation_library import generation_library
from support.tokenizer_samples import TOKENIZERS

from edgec.compiler.errors import BadInputError, UnsupportedModelError
from edgec.compiler.generation.native import Tokenizer
from edgec.compiler.tokenizer.chat_pieces import ChatTemplate, chat_pieces
from edgec.compiler.tokenizer.tokenizer_file import tokenizer_file

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATS = [
    [("user", "Hi")],
    [("user", " é\n"), ("assistant", "Yes? "), ("user", "No")],
    [("system", " s "), ("user", "Hi"), ("assistant", "A"), ("user", "B")],
]


@pytest.mark.parametrize("source", [CHATML, LLAMA3, NO_SYSTEM], ids=["chatml", "llama3", "inst"])
def test_the_c_renders_what_jinja_renders(source: str) -> None:
    template = ChatTemplate(source, SPECIAL)
    content = tokenizer_file(TOKENIZERS["GPT-2"]().to_str(), chat=chat_pieces(template))
    tokenizer = Tokenizer(generation_library(), content)
    for chat in CHATS:
        if source == NO_SYSTEM and chat[0][0] == "system":
            assert tokenizer.chat_text(chat) is None
            continue
        messages = [{"role": role, "content": text} for role, text in chat]
        assert tokenizer.chat_text(chat) == template.render(messages)
    assert tokenizer.chat_text([("user", "a"), ("user", "b")]) is None
    assert tokenizer.chat_text([("user", "a"), ("assistant", "b")]) is None
    assert tokenizer.chat_text([("tool", "a")]) is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | length }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'].split('<|')[0] }}|{% endfor %}",
        "{{ messages | tojson }}",
    ],
    ids=["counts", "upper", "cuts", "json"],
)
def test_templates_that_are_programs_are_refused(source: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"chat template .* on a board"):
        chat_pieces(ChatTemplate(source, SPECIAL))


def test_a_tokenizer_without_chats() -> None:
    tokenizer = Tokenizer(generation_library(), tokenizer_file(TOKENIZERS["GPT-2"]().to_str()))
    assert tokenizer.chat_text([("user", "a")]) is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "is no Jinja"),
        ("{{ raise_exception('no such role') }}", "refuses these messages: no such role"),
        ("{{ messages[0].content.__class__.__mro__ }}", "refuses these messages"),
    ],
)
def test_bad_templates(source: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        ChatTemplate(source, {}).render([json.loads('{"role": "user", "content": "a"}')])
