# ruff: noqa: E501  (templates)
"""Chat templates: text and ids equal `transformers`, messages forge no special token, and every rendering is bounded."""

import datetime

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sentencepiece import CORPUS, trained

from glassformer.errors import TokenizerError
from glassformer.text.chat import sandbox
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
SPECIAL_TOKENS = {
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
MESSAGES = [
    {"role": "user", "content": "  Hello, who is the cat?\n"},
    {"role": "assistant", "content": "\n\nThe cat sat. 猫 👩‍👩‍👧 "},
    {"role": "user", "content": ""},
]
TOOLS = [
    {"type": "function", "function": {"name": "look", "description": "Looks <up>", "parameters": {"a": [1, None]}}}
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    pairs = {}
    for name, source in TEMPLATES.items():
        trained_tokenizer = train_tokenizer(
            [CORPUS] * 3, vocab_size=420, special_tokens=SPECIAL_TOKENS[name], pattern="llama3"
        )
        folder = tmp_path_factory.mktemp(name)
        Tokenizer(trained_tokenizer.backend.json, NAMES[name], chat_template=source).save(folder)
        pairs[name] = (load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder))
    return pairs


def assert_equal(ours, theirs, messages, **fields):
    chat = ChatTemplate(ours)
    wanted = theirs.apply_chat_template(messages, tokenize=False, **fields)
    assert chat.render(messages, **fields) == wanted
    assert chat.encode(messages, **fields) == theirs.apply_chat_template(messages, return_dict=False, **fields)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_text_and_ids_equal_transformers(tokenizers, name, prompt):
    assert_equal(*tokenizers[name], MESSAGES, add_generation_prompt=prompt)
    assert_equal(*tokenizers[name], MESSAGES[:1], add_generation_prompt=prompt)
    ids = ChatTemplate(tokenizers[name][0]).encode(MESSAGES)
    bos = tokenizers[name][0].bos_id
    assert ids.count(bos) == (bos is not None), "exactly one BOS"


def test_tool_calls_equal_transformers(tokenizers):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"a": "é"}}}]}
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES, call, {"role": "tool", "content": "42"}]
    assert_equal(*tokenizers["mistral"], messages, tools=TOOLS)


WORDS = st.lists(
    st.sampled_from(["the cat", "\n", " ", "</think>", "<|im", "|>", "猫", "é", "  ", "12", "<", "[", "INST]"])
)


@pytest.mark.parametrize("name", TEMPLATES)
@given(first=WORDS, second=WORDS, prompt=st.booleans())
@settings(max_examples=40)
def test_text_and_ids_of_random_messages_equal_transformers(tokenizers, name, first, second, prompt):
    ours, theirs = tokenizers[name]
    contents = ["".join(first), "".join(second)]
    if any(token in text for token in ours.special_tokens for text in contents):
        return
    assert_equal(ours, theirs, [{"role": r, "content": t} for r, t in zip(("user", "assistant"), contents, strict=True)],
         add_generation_prompt=prompt)  # fmt: skip


# ---- forged special tokens


@pytest.mark.parametrize("name", TEMPLATES)
def test_special_tokens_in_messages_are_plain_text(tokenizers, name):
    """Each special token: alone, doubled, in two halves, and so that trimming or splitting would join the halves."""
    ours = tokenizers[name][0]
    chat, ids = ChatTemplate(ours), set(ours.special_tokens.values())
    clean = [i for i in chat.encode([MESSAGES[0] | {"content": "x"}, MESSAGES[1]]) if i in ids]
    for token in ours.special_tokens:
        halves = [(token[:at], token[at:]) for at in (1, 2, len(token) - 1)]
        forged = [token, token * 2, f" {token}\n", *(f"{a}</think>{b}" for a, b in halves)]
        forged += [a for a, _ in halves] + [b for _, b in halves]
        for text in forged:
            for index in (0, 1):
                messages = [MESSAGES[0] | {"content": "x"}, dict(MESSAGES[1])]
                messages[index]["content"] = text
                found = [i for i in chat.encode(messages) if i in ids]
                assert found == clean, (token, text)
            assert ours.decode(chat.encode(messages)) == chat.render(messages)


@given(
    parts=st.lists(
        st.sampled_from(["<|im_start|>", "<|", "im_end", "|>", "</think>", "<think>", "x", "\n", " ", "\U00100000"])
    )
)
def test_random_messages_never_forge_special_tokens(tokenizers, parts):
    ours = tokenizers["chatml"][0]
    chat, ids = ChatTemplate(ours), set(ours.special_tokens.values())
    messages = [{"role": "user", "content": "".join(parts)}, {"role": "assistant", "content": "".join(parts[::-1])}]
    clean = chat.encode([message | {"content": "x"} for message in messages])
    assert [i for i in chat.encode(messages) if i in ids] == [i for i in clean if i in ids]


def test_roles_never_forge_special_tokens(tokenizers):
    for name in ("chatml", "phi"):
        ours = tokenizers[name][0]
        ids = set(ours.special_tokens.values())
        chat = ChatTemplate(ours)
        for role in ("user<|im_end|>", "<|end|>"):
            found = chat.encode([{"role": role, "content": "x"}])
            clean = chat.encode([{"role": "stranger", "content": "x"}])
            assert [i for i in found if i in ids] == [i for i in clean if i in ids]
    with pytest.raises(TokenizerError, match=r"builds the special token '<\|end\|>' out of the text of a message"):
        ChatTemplate(tokenizers["phi"][0]).encode([{"role": "end", "content": "x"}])


def test_marks_that_a_message_contains_are_not_used(tokenizers):
    chat = ChatTemplate(tokenizers["chatml"][0])
    marks = chat._marked[0]
    for text in (marks, marks[0] + "<|im_end|>" + marks[1]):
        ids = chat.encode([{"role": "user", "content": text}])
        assert chat.tokenizer.decode(ids) == chat.render([{"role": "user", "content": text}])
        assert ids.count(chat.tokenizer.eos_id) == 2


def test_template_that_depends_on_the_marks_raises_error(tokenizers):
    tokenizer = tokenizers["chatml"][0]
    for source in (
        "{% set end = '<|im_end|>' %}{{ messages[0].content.split(end)[0] }}{{ end }}",
        "{% set x %}<|im_end|>{% endset %}{{ x | length }}",
        "{{ '<|im_end|>' | reverse }}",
    ):
        with pytest.raises(TokenizerError, match="processes its own special tokens like the text of a message"):
            ChatTemplate(tokenizer, source=source).encode([{"role": "user", "content": "a<|im_end|>b"}])


@pytest.mark.parametrize("source", ["{{ '<|im_{}|>'.format('end') }}", "{{ '<|im_start|>xx'[:-2] }}"])
def test_special_token_built_by_the_template_raises_error(tokenizers, source):
    """The error replaces a silent change of a special token to plain text."""
    with pytest.raises(TokenizerError, match="in a way that is not supported"):
        ChatTemplate(tokenizers["chatml"][0], source=source).encode([{"role": "user", "content": "x"}])


def test_sentencepiece_prefix_spaces_equal_encode():
    """The tokenizer adds a space before each text or only before the first, with and without a template."""
    from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer

    for after_special in (False, True):
        core = SentencePieceTokenizer(trained("bpe-llama"), prefix_after_special=after_special, template="</s>")
        chat = ChatTemplate(Tokenizer(core), source="{{ bos_token }}{{ messages[0].content }}{{ eos_token }} x")
        text = "the cat"
        ids = chat.encode([{"role": "user", "content": text}])
        assert ids == chat.tokenizer.encode(f"<s>{text}</s> x", parse_special=True, bare=True)
        forged = chat.encode([{"role": "user", "content": "a</s><s>"}])
        assert (forged.count(1), forged.count(2)) == (1, 1)


# ---- template selection and errors


def test_templates_are_read_from_config_and_file(tokenizers):
    tokenizer = tokenizers["chatml"][0]
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
        ("{% set n = namespace(_x=1) %}", "a namespace cannot have an attribute that begins with _, got '_x'"),
    ],
)
def test_failing_template_raises_error_with_its_line(tokenizers, source, message):
    with pytest.raises(TokenizerError, match=message):
        ChatTemplate(tokenizers["chatml"][0], source=source).encode([{"role": "user", "content": "x"}])


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
def test_template_that_exceeds_a_limit_is_stopped(tokenizers, source, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_STEPS", 20_000)  # the default is 50 times larger
    with pytest.raises(TokenizerError, match="stopped"):
        ChatTemplate(tokenizers["chatml"][0], source=source).render([])


def test_invalid_message_content_raises_error(tokenizers):
    chat = ChatTemplate(tokenizers["chatml"][0])
    with pytest.raises(TokenizerError, match=r"messages\[0\]\.content must be a string, .*, got object"):
        chat.render([{"role": "user", "content": object()}])
    with pytest.raises(TokenizerError, match="lone surrogate"):
        chat.encode([{"role": "user", "content": "a\ud800"}])


def test_strftime_now_formats_the_given_time():
    tokenizer = train_tokenizer([CORPUS], vocab_size=300)
    chat = ChatTemplate(tokenizer, source="{{ strftime_now('%d %B %Y') }}")
    assert chat.render([], now=datetime.datetime(2024, 2, 29)) == "29 February 2024"
