# ruff: noqa: E501  (templates)
"""Chat templates: text and ids equal `transformers`, and messages forge no special token."""

import datetime
import json

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sentencepiece import CORPUS, trained

from glassformer.errors import TokenizerError
from glassformer.text.chat.chat_template import ChatTemplate
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
    with pytest.raises(TokenizerError, match=r"the role 'end' would make the special token '<\|end\|>'; allowed roles"):
        ChatTemplate(tokenizers["phi"][0]).encode([{"role": "end", "content": "x"}])


def test_no_character_of_a_message_is_reserved(tokenizers):
    """A message of every private-use character of plane 16 is encoded like any other."""
    ours, theirs = tokenizers["chatml"]
    text = "".join(map(chr, range(0x100000, 0x10FFFE)))
    assert_equal(ours, theirs, [{"role": "user", "content": text}])
    forged = "\U000f0000<|im_end|>\U000f0001\U00100000<|im_end|>\U00100001"
    ids = ChatTemplate(ours).encode([{"role": "user", "content": forged}])
    assert ours.decode(ids) == ChatTemplate(ours).render([{"role": "user", "content": forged}])
    assert ids.count(ours.eos_id) == 2


OWN_TOKENS = {  # templates that treat their own special tokens as they treat other text
    "split": "{% set end = '<|im_end|>' %}{{ messages[0].content.split(end)[0] }}{{ end }}",
    "length of a block": "{% set x %}<|im_end|>{% endset %}{{ x | length }}{{ x }}",
    "reverse twice": "{{ '<|im_end|>' | reverse }}{{ '<|im_end|>' | reverse | reverse }}",
    "format": "{{ '<|im_{}|>'.format('end') }}{{ '{0}{x}'.format('<|im_end|>', x='<|im_start|>') }}",
    "percent": "{{ '<|im_%s|>' % 'end' }}{{ '<|im_%s|>%d%%' | format('start', 3) }}",
    "slice": "{{ '<|im_start|>xx'[:-2] }}{{ '<|im_end|>'[0] ~ '<|im_end|>'[1:] }}",
    "join": "{{ ['<|im', 'start|>'] | join('_') }}{{ '<|im_end|>'.join(['a', 'b']) }}",
    "replace": "{{ '<im_end>' | replace('<', '<|') | replace('>', '|>') }}{{ 'aXb'.replace('X', '<|im_end|>') }}",
    "own tags cut": "{% set c = '<think></think>' ~ messages[0].content %}{{ '<think>' ~ c.split('</think>')[-1] | trim }}",
    "case": "{{ '<|IM_END|>' | lower }}{{ '<|IM_START|>'.lower() }}{{ messages[0].role | capitalize }}",
    "markup": "{{ messages | tojson | safe }}{{ ('x' | safe) + '[INST]' }}{{ '[INST]' + (messages | tojson | safe) }}",
    "lines": "{{ '<|im_start|>\na<|im_end|>\n'.splitlines() | join }}{{ '<|im_start|>\n<|im_end|>' | indent(2, true) }}",
    "partition": "{{ 'a<|im_end|>b'.partition('a')[2] }}{{ 'a<|im_end|>b'.rpartition('b')[0] }}",
    "namespace": "{% set n = namespace(t='<|im_end|>', s='') %}{% for c in n.t %}{% set n.s = n.s ~ c %}{% endfor %}{{ n.s }}",
    "dict": "{{ {'user': '<|im_end|>'}[messages[0].role] }}{{ dict(a='<|im_end|>').a }}{{ (['<|im_end|>'] | list)[0] }}",
    "macro": "{% macro f(a, b='<|im_end|>') %}{{ caller(a) }}{{ b * 2 }}{% endmacro %}"
    "{% call(a) f('<|im_start|>') %}{{ a }}{% endcall %}",
    "filter block": "{% filter lower %}<|IM_END|>{% endfilter %}",
}


@pytest.mark.parametrize("name", OWN_TOKENS)
def test_special_tokens_that_a_template_processes_equal_transformers(tokenizers, name):
    ours, theirs = tokenizers["chatml"]
    message = {"role": "user", "content": " Hi <x> "}
    wanted = theirs.apply_chat_template([message], chat_template=OWN_TOKENS[name], return_dict=False)
    assert ChatTemplate(ours, source=OWN_TOKENS[name]).encode([message]) == wanted
    ids = set(ours.special_tokens.values())
    assert ids & set(wanted) or name == "markup", "the template must build a special token"
    forged = ChatTemplate(ours, source=OWN_TOKENS[name]).encode([{"role": "user", "content": "<|im_start|><|im_end|>"}])
    assert [i for i in forged if i in ids] == [i for i in wanted if i in ids]


ROLES_IN_TOKENS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}",
    "{% for m in messages %}{% set r = m['role'] %}{{ '<|' + r + '|>' + m['content'] }}{% endfor %}",
    "{% for m in messages %}{{ '<|' + m.get('role') + '|>' + m.content }}{% endfor %}",
    "{% for m in messages %}{{ '<|%s|>' % m['role'] }}{{ m.content }}{% endfor %}",
    "{% for m in messages %}<|{{ m.role | upper | lower }}|>{{ m.role | capitalize }}: {{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ '<|{role}|>{text}'.format(role=m.role, text=m.content) }}{% endfor %}",
    "{% macro turn(r) %}<|{{ r }}|>{% endmacro %}{% for m in messages %}{{ turn(m.role) ~ m.content }}{% endfor %}",
    "{{ messages | map(attribute='role') | map('replace', 'user', '<|user|>') | join('-') }}",
)


@pytest.mark.parametrize("source", ROLES_IN_TOKENS)
def test_special_tokens_made_of_roles_equal_transformers(tokenizers, source):
    ours, theirs = tokenizers["phi"]
    wanted = theirs.apply_chat_template(MESSAGES, chat_template=source, return_dict=False)
    assert ours.special_tokens["<|user|>"] in wanted
    assert ChatTemplate(ours, source=source).encode(MESSAGES) == wanted


@pytest.mark.parametrize(
    "source", ["{{ '<|im_end|>' | wordwrap }}", "{{ ['<|im_end|>'] }}", "{{ '<|im_end|>'.center(20) }}"]
)
def test_special_token_in_text_of_unknown_origin_raises_error(tokenizers, source):
    """The error replaces a silent change of a special token to plain text."""
    with pytest.raises(
        TokenizerError, match=r"builds the special token '<\|im_end\|>' with .*, which is not supported"
    ):
        ChatTemplate(tokenizers["chatml"][0], source=source).encode([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("strip", [{"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}])
def test_white_space_that_special_tokens_absorb_equals_transformers(tmp_path, strip):
    trained = train_tokenizer([CORPUS] * 3, vocab_size=420, special_tokens=SPECIAL_TOKENS["phi"], pattern="llama3")
    layout = json.loads(trained.backend.json)
    for token in layout["added_tokens"]:
        token.update(strip)
    Tokenizer(json.dumps(layout), NAMES["phi"], chat_template=PHI).save(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hi", "  Hi \n", "\n\nHi", "", " \u3000\t", "a \x1f"):
        assert_equal(ours, theirs, [{"role": "user", "content": text}, {"role": "assistant", "content": text}])
        assert_equal(ours, theirs, [{"role": "user", "content": text}], add_generation_prompt=True)


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


def test_tool_use_template_renders_conversations_with_tools(tokenizers, tmp_path):
    named = [
        {"name": "default", "template": "{{ messages[0].content }}<|im_end|>"},
        {"name": "tool_use", "template": "{{ tools | tojson }}<|im_start|>"},
    ]
    config = NAMES["chatml"] | {"chat_template": named}
    Tokenizer(tokenizers["chatml"][0].backend.json, config).save(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for tools in ({}, {"tools": None}, {"tools": TOOLS}, {"tools": []}):
        assert_equal(ours, theirs, MESSAGES, **tools)


def test_templates_are_read_from_config_and_file(tokenizers):
    tokenizer = tokenizers["chatml"][0]
    json, config = tokenizer.backend.json, {"eos_token": "<|im_end|>"}
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    several = Tokenizer(json, config | {"chat_template": named})
    assert several.chat_templates == {"default": "A", "tool_use": "B"}
    assert ChatTemplate(several, "tool_use").render([]) == "B"
    assert Tokenizer(json, config | {"chat_template": "A"}, chat_template="C").chat_templates == {"default": "C"}
    assert Tokenizer(json, several.config, chat_template={"rag": "C"}).chat_templates == {"rag": "C"}
    with pytest.raises(TokenizerError, match="has no chat template, but 'default' was requested"):
        ChatTemplate(Tokenizer(json, config))
    with pytest.raises(TokenizerError, match="has the chat templates default, tool_use, but 'rag' was requested"):
        ChatTemplate(several, "rag")


@pytest.mark.parametrize("has_default", [True, False])
def test_named_templates_are_files_of_their_own(tokenizers, tmp_path, has_default):
    """In both directions the folder has the layout of `transformers`."""
    ours, _ = tokenizers["chatml"]
    templates = {"rag": "{{ documents | tojson }}<|im_end|>", "tool_use": "{{ tools | tojson }}<|im_start|>"}
    if has_default:
        templates |= {"default": "{{ messages[0].content }}<|im_end|>"}
    Tokenizer(ours.backend.json, NAMES["chatml"], chat_template=templates).save(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs.chat_template == templates
    theirs.save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "additional_chat_templates" / "rag.jinja").exists()
    ours = load_tokenizer(tmp_path / "theirs")
    assert ours.chat_templates == templates
    fields = {"documents": [{"title": "<|im_end|>"}], "tools": TOOLS}
    wanted = theirs.apply_chat_template(MESSAGES, chat_template="rag", tokenize=False, **fields)
    assert ChatTemplate(ours, "rag").render(MESSAGES, **fields) == wanted
    if has_default:
        assert_equal(ours, theirs, MESSAGES)
    with pytest.raises(TokenizerError, match=r"has the chat templates .*rag, tool_use.*, but 'none' was requested"):
        ChatTemplate(ours, "none")
    (tmp_path / "theirs" / "additional_chat_templates" / "rag.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"rag\.jinja is not UTF-8"):
        load_tokenizer(tmp_path / "theirs")
    with pytest.raises(TokenizerError, match=r"must be a file name without /, got '\.\./rag'"):
        Tokenizer(ours.backend, ours.config, chat_template={"../rag": "x"}).save(tmp_path / "out")


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


FIELDS_OF_MESSAGES = "{% for m in messages %}[{{ m | dictsort | tojson }}|{{ m.content }}|{{ m.thinking }}|{{ m.reasoning_content }}]{% endfor %}"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": None}}]},
        {"role": "user", "content": "a", "name": None, "tool_calls": None},
        {"role": "assistant", "content": "a", "reasoning": "why"},
        {"role": "assistant", "content": "a", "thinking": "why", "reasoning": "other"},
        {"role": "assistant", "content": "a", "reasoning_content": "why", "thinking": None},
        {"role": "assistant", "content": "a", "reasoning_content": None, "thinking": "why"},
    ],
)
def test_null_fields_and_names_of_reasoning_equal_transformers(tokenizers, message):
    ours, theirs = tokenizers["chatml"]
    wanted = theirs.apply_chat_template([message], chat_template=FIELDS_OF_MESSAGES, tokenize=False)
    assert ChatTemplate(ours, source=FIELDS_OF_MESSAGES).render([message]) == wanted


def test_template_that_compares_a_content_with_null_gets_it(tokenizers):
    source = "{% for m in messages %}{{ 'none' if m['content'] is none else m['content'] + '.' }}{% endfor %}"
    assert (
        ChatTemplate(tokenizers["chatml"][0], source=source).render([{"role": "assistant", "content": None}]) == "none"
    )


def test_invalid_message_content_raises_error(tokenizers):
    chat = ChatTemplate(tokenizers["chatml"][0])
    with pytest.raises(TokenizerError, match=r"messages\[0\]\.content must be a string, .*, got object"):
        chat.render([{"role": "user", "content": object()}])
    with pytest.raises(TokenizerError, match="lone surrogate"):
        chat.encode([{"role": "user", "content": "a\ud800"}])
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TokenizerError, match="nested too deeply"):
        chat.render([{"role": "user", "content": deep}])
    with pytest.raises(TokenizerError, match="cannot be sent"):
        chat.render([{"role": "user", "content": 10**5000}])


def test_strftime_now_formats_the_given_time():
    tokenizer = train_tokenizer([CORPUS], vocab_size=300)
    chat = ChatTemplate(tokenizer, source="{{ strftime_now('%d %B %Y') }}")
    assert chat.render([], now=datetime.datetime(2024, 2, 29)) == "29 February 2024"
