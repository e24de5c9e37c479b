# ruff: noqa: E501  (templates)
"""Chat templates: the same text and ids as transformers; no message forges a control token; nothing runs for ever."""

import datetime

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sentencepiece import CORPUS, trained

from glassformer.errors import TokenizerError
from glassformer.text.chat import sandbox as template
from glassformer.text.chat.chat_template import ChatTemplate, chat_templates
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer

CHATML = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content.split('</think>')[-1].lstrip('\\n') ~ '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}{% endif %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

MISTRAL = """{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and tools and loop.index0 == ns.last %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools | map(attribute='function') %}
                {{- '{"type": "function", "function": ' + tool | tojson + '}' }}{{ ', ' if not loop.last }}
            {%- endfor %}{{ ']' }}{{ '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system + '\\n\\n' if system and loop.index0 == ns.last else '') + message['content'] + '[/INST]' }}
    {%- elif message['tool_calls'] is defined and message['tool_calls'] %}
        {{- '[TOOL_CALLS] [' + message.tool_calls | map(attribute='function') | map('tojson') | join(', ') + ']' + eos_token }}
    {%- elif message['role'] == 'assistant' %}
        {%- generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + '}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

PHI = """{% for message in messages %}{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

MACRO = """{% macro turn(role, text, mark='<|im_start|>') %}{{ mark }}{{ role }}: {{ text | indent(2) }}{{ '<|im_end|>' }}{% endmacro %}
{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ turn(m.role, m.content) }}{{ {'user': '<|im_end|>', 'x': 'y'}[m.role] if m.role == 'user' }}{% endfor %}
{{ strftime_now('%Y') if add_generation_prompt }}{% set tail %}<|im_start|>assistant{% endset %}{{ tail }}"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "phi": PHI, "macro": MACRO}
CONTROL = {
    "chatml": ("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "mistral": (
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_CALLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    "phi": ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "macro": ("<|im_start|>", "<|im_end|>"),
}
NAMES = {
    "chatml": {"eos_token": "<|im_end|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "add_bos_token": True},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "add_bos_token": True},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
    "phi": {"eos_token": "<|endoftext|>"},
    "macro": {"eos_token": "<|im_end|>"},
}
TALK = [
    {"role": "user", "content": "  Hello, who is the cat?\n"},
    {"role": "assistant", "content": "\n\nThe cat sat. 猫 👩‍👩‍👧 "},
    {"role": "user", "content": ""},
]
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "Looks <up>", "parameters": {"a": [1, None]}}}
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = {}
    for name, source in TEMPLATES.items():
        trained_one = train_tokenizer([CORPUS] * 3, vocab_size=420, special_tokens=CONTROL[name], pattern="llama3")
        folder = tmp_path_factory.mktemp(name)
        Tokenizer(trained_one.backend.json, NAMES[name], chat_template=source).save(folder)
        found[name] = (load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder))
    return found


def same(ours, theirs, messages, **fields):
    chat = ChatTemplate(ours)
    wanted = theirs.apply_chat_template(messages, tokenize=False, **fields)
    assert chat.render(messages, **fields) == wanted
    assert chat.encode(messages, **fields) == theirs.apply_chat_template(messages, return_dict=False, **fields)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_the_same_as_transformers(made, name, prompt):
    same(*made[name], TALK, add_generation_prompt=prompt)
    same(*made[name], TALK[:1], add_generation_prompt=prompt)
    ids = ChatTemplate(made[name][0]).encode(TALK)
    bos = made[name][0].bos_id
    assert ids.count(bos) == (bos is not None), "never two"


def test_tools(made):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"a": "é"}}}]}
    talk = [{"role": "system", "content": "Be brief."}, *TALK, call, {"role": "tool", "content": "42"}]
    same(*made["mistral"], talk, tools=TOOLS)


WORDS = st.lists(
    st.sampled_from(["the cat", "\n", " ", "</think>", "<|im", "|>", "猫", "é", "  ", "12", "<", "[", "INST]"])
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(first=WORDS, second=WORDS, prompt=st.booleans())
@settings(max_examples=40)
def test_the_same_as_transformers_whatever_is_said(made, name, first, second, prompt):
    ours, theirs = made[name]
    said = ["".join(first), "".join(second)]
    if any(token in text for token in ours.special_tokens for text in said):
        return
    same(ours, theirs, [{"role": r, "content": t} for r, t in zip(("user", "assistant"), said, strict=True)],
         add_generation_prompt=prompt)  # fmt: skip


# ---- forging


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_message_forges_a_control_token(made, name):
    """All names, alone, doubled, cut in two, and such that trimming or splitting would put one together."""
    ours = made[name][0]
    chat, ids = ChatTemplate(ours), set(ours.special_tokens.values())
    clean = [i for i in chat.encode([TALK[0] | {"content": "x"}, TALK[1]]) if i in ids]
    for token in ours.special_tokens:
        halves = [(token[:at], token[at:]) for at in (1, 2, len(token) - 1)]
        forged = [token, token * 2, f" {token}\n", *(f"{a}</think>{b}" for a, b in halves)]
        forged += [a for a, _ in halves] + [b for _, b in halves]
        for text in forged:
            for where in (0, 1):
                talk = [TALK[0] | {"content": "x"}, dict(TALK[1])]
                talk[where]["content"] = text
                found = [i for i in chat.encode(talk) if i in ids]
                assert found == clean, (token, text)
            assert ours.decode(chat.encode(talk)) == chat.render(talk)


@given(
    parts=st.lists(
        st.sampled_from(["<|im_start|>", "<|", "im_end", "|>", "</think>", "<think>", "x", "\n", " ", "\U00100000"])
    )
)
def test_no_mixture_forges_one(made, parts):
    ours = made["chatml"][0]
    chat, ids = ChatTemplate(ours), set(ours.special_tokens.values())
    talk = [{"role": "user", "content": "".join(parts)}, {"role": "assistant", "content": "".join(parts[::-1])}]
    clean = chat.encode([one | {"content": "x"} for one in talk])
    assert [i for i in chat.encode(talk) if i in ids] == [i for i in clean if i in ids]


def test_roles_and_names_forge_none_either(made):
    for name in ("chatml", "phi"):
        ours = made[name][0]
        ids = set(ours.special_tokens.values())
        chat = ChatTemplate(ours)
        for role in ("user<|im_end|>", "<|end|>"):
            found = chat.encode([{"role": role, "content": "x"}])
            clean = chat.encode([{"role": "stranger", "content": "x"}])
            assert [i for i in found if i in ids] == [i for i in clean if i in ids]
    with pytest.raises(TokenizerError, match=r"builds the special token '<\|end\|>' out of the text of a message"):
        ChatTemplate(made["phi"][0]).encode([{"role": "end", "content": "x"}])


def test_marks_in_a_message_are_avoided(made):
    chat = ChatTemplate(made["chatml"][0])
    marks = chat._marked[0]
    for text in (marks, marks[0] + "<|im_end|>" + marks[1]):
        ids = chat.encode([{"role": "user", "content": text}])
        assert chat.tokenizer.decode(ids) == chat.render([{"role": "user", "content": text}])
        assert ids.count(chat.tokenizer.eos_id) == 2


def test_a_template_whose_result_depends_on_the_marks_is_refused(made):
    tokenizer = made["chatml"][0]
    for source in (
        "{% set end = '<|im_end|>' %}{{ messages[0].content.split(end)[0] }}{{ end }}",
        "{% set x %}<|im_end|>{% endset %}{{ x | length }}",
        "{{ '<|im_end|>' | reverse }}",
    ):
        with pytest.raises(TokenizerError, match="processes its own special tokens like the text of a message"):
            ChatTemplate(tokenizer, source=source).encode([{"role": "user", "content": "a<|im_end|>b"}])


@pytest.mark.parametrize("source", ["{{ '<|im_{}|>'.format('end') }}", "{{ '<|im_start|>xx'[:-2] }}"])
def test_a_control_token_that_is_lost_from_sight_is_refused(made, source):
    """Rather than to become plain text without a word."""
    with pytest.raises(TokenizerError, match="in a way that is not supported"):
        ChatTemplate(made["chatml"][0], source=source).encode([{"role": "user", "content": "x"}])


def test_sentencepiece_scaffolds():
    """A space before each text or only before the first, as the tokenizer does outside of templates."""
    from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer

    for inside in (False, True):
        core = SentencePieceTokenizer(trained("bpe-llama"), prefix_after_special=inside, template="</s>")
        chat = ChatTemplate(Tokenizer(core), source="{{ bos_token }}{{ messages[0].content }}{{ eos_token }} x")
        text = "the cat"
        ids = chat.encode([{"role": "user", "content": text}])
        assert ids == chat.tokenizer.encode(f"<s>{text}</s> x", parse_special=True, bare=True)
        forged = chat.encode([{"role": "user", "content": "a</s><s>"}])
        assert (forged.count(1), forged.count(2)) == (1, 1)


# ---- which template, and errors


def test_where_templates_come_from(made):
    tokenizer = made["chatml"][0]
    json, config = tokenizer.backend.json, {"eos_token": "<|im_end|>"}
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    several = Tokenizer(json, config | {"chat_template": named})
    assert chat_templates(several) == {"default": "A", "tool_use": "B"}
    assert ChatTemplate(several, "tool_use").render([]) == "B"
    assert chat_templates(Tokenizer(json, config | {"chat_template": "A"}, chat_template="C")) == {"default": "C"}
    with pytest.raises(TokenizerError, match="has no chat template, but 'default' was requested"):
        ChatTemplate(Tokenizer(json, config))
    with pytest.raises(TokenizerError, match="has the chat templates default, tool_use, but 'rag' was requested"):
        ChatTemplate(several, "rag")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "default, line 2: Expected an expression"),
        ("a\nb\n{{ raise_exception('no system') }}", "default, line 3: no system"),
        ("a\n{{ messages[3].content }}", "line 2: .*no element 3"),
        ("{{ missing.field }}", "line 1: 'missing' is undefined"),
        ("{{ 1 + 'a' }}", "line 1: TypeError"),
        ("\n\n{{ 'a' | nothing }}", "line 3: No filter named 'nothing'"),
        ("{{ messages.append(1) }}", "line 1: .*not safely callable|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "line 1: access to attribute '__class__'"),
        ("{{ messages.__init__.__globals__ }}", "access to attribute '__init__'"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "undefined|access to attribute"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% set n = namespace(_x=1) %}", "a namespace cannot hold '_x'"),
    ],
)
def test_a_template_that_fails_is_an_error_with_its_line(made, source, message):
    with pytest.raises(TokenizerError, match=message):
        ChatTemplate(made["chatml"][0], source=source).encode([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{{ 'a' * 10**10 }}",
        "{{ 9**9**9**9 }}",
        "{{ 'a'.center(10**10) }}",
        "{{ 'a' | center(10**10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set x = 'abc' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
        "{% for i in range(100000) %}" + "a" * 10_000 + "{% endfor %}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ ('a' * 1000000).replace('a', 'a' * 1000000) }}",
    ],
)
def test_a_template_that_would_not_end_is_stopped(made, source, monkeypatch):
    monkeypatch.setattr(template, "MAX_STEPS", 20_000)  # the bound is fifty times that, the test as much quicker
    with pytest.raises(TokenizerError, match="stopped"):
        ChatTemplate(made["chatml"][0], source=source).render([])


def test_what_a_message_may_hold(made):
    chat = ChatTemplate(made["chatml"][0])
    with pytest.raises(TokenizerError, match=r"messages\[0\]\.content must be a string, .*, got object"):
        chat.render([{"role": "user", "content": object()}])
    with pytest.raises(TokenizerError, match="lone surrogate"):
        chat.encode([{"role": "user", "content": "a\ud800"}])


def test_now_is_given():
    tokenizer = train_tokenizer([CORPUS], vocab_size=300)
    chat = ChatTemplate(tokenizer, source="{{ strftime_now('%d %B %Y') }}")
    assert chat.render([], now=datetime.datetime(2024, 2, 29)) == "29 February 2024"
