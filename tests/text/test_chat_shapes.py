# ruff: noqa: E501  (templates)
"""Templates with the structure and fields of published models: text and ids equal `transformers`.

The wording of the templates is our own.
"""

import datetime

import pytest
import transformers
from test_sentencepiece import CORPUS
from transformers.utils.chat_template_utils import _compile_jinja_template

from glassformer.errors import TokenizerError
from glassformer.text.chat.chat_template import ChatTemplate
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer

LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Where: ipython\\n" }}{%- endif %}
{%- if builtin_tools is defined %}{{- "Have: " + builtin_tools | reject('equalto', 'code') | join(", ") + "\\n\\n" }}{%- endif %}
{{- "Now: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "Call with {\\"name\\": ..., \\"parameters\\": ...}.\\n\\n" }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("No first message to put the tools in") }}{%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("One call at a time") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n<|python_tag|>' + tool_call.name + ".call(" }}
            {%- for arg_name, arg_val in tool_call.arguments | items %}{{- arg_name + '="' ~ arg_val ~ '"' }}{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}
            {{- ")" }}
        {%- else %}
            {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
            {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
        {%- endif %}
        {%- if builtin_tools is defined %}{{- "<|eom_id|>" }}{%- else %}{{- "<|eot_id|>" }}{%- endif %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You help.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n\\nAnswer in <tool_call></tool_call>.<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}{{'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>'}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '<｜tool▁call▁end｜>'}}{%- endif %}{%- endfor %}{{'<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- else -%}{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"""

SCHEMA = """{%- macro kind(spec, depth=0) -%}
    {%- if spec.type == 'array' -%}{{ kind(spec['items'], depth + 1) }}[]
    {%- elif spec.type == 'object' and spec.properties is defined -%}
        {{- '{' }}{%- for name, one in spec.properties | dictsort %}{{ '\\n' ~ '  ' * depth ~ name }}{{ '' if name in (spec.required or []) else '?' }}: {{ kind(one, depth + 1) }}{% if not loop.last %},{% endif %}{%- endfor %}{{- '}' }}
    {%- elif spec.enum -%}{{ spec.enum | map('tojson') | join(' | ') }}
    {%- else -%}{{ spec.type | default('any') }}{%- endif -%}
{%- endmacro -%}
{{- bos_token ~ '<|im_start|>system\\n' }}{% if documents %}{% for d in documents %}{{ d.title | upper }}: {{ d.text | replace('\\n', ' ') | truncate(30) }}{{ '; ' if not loop.last }}{% endfor %}{% endif %}
{%- if tools %}{% for tool in tools | map(attribute='function') | selectattr('name', 'ne', 'hidden') %}
// {{ tool.description | wordwrap(20) | indent(3) }}
type {{ tool.name }} = (_: {{ kind(tool.parameters) }});{% endfor %}{% endif %}{{ '<|im_end|>' }}
{%- for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}
    {%- if loop.index > 6 %}{% break %}{% endif %}
    {{- '\\n<|im_start|>' ~ message.role ~ ('' if loop.nextitem is defined else ' (last)') ~ '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content or '' }}{{ eos_token }}{% endgeneration %}{% else %}{{ message.content }}{{ '<|im_end|>' }}{% endif %}
{%- endfor %}
{%- set tail = ['<|im_start|>', 'assistant', '\\n'] %}{{ tail | join if add_generation_prompt }}"""

IM, TOOL = ("<|im_start|>", "<|im_end|>"), ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
HEADER = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
DEEP = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁sep｜>")
DEEP += tuple(f"<｜tool▁{what}▁{end}｜>" for what in ("calls", "call", "outputs", "output") for end in ("begin", "end"))

SHAPES = {  # template, special tokens, config
    "llama3.1": (LLAMA31, HEADER, {"bos_token": HEADER[0], "eos_token": "<|eot_id|>"}),
    "qwen2.5": (QWEN25, (*IM, *TOOL), {"eos_token": "<|im_end|>"}),
    "qwen3": (QWEN3, (*IM, *TOOL, "<think>", "</think>"), {"eos_token": "<|im_end|>"}),
    "deepseek": (DEEPSEEK, DEEP, {"bos_token": DEEP[0], "eos_token": DEEP[1]}),
    "gemma3": (GEMMA3, ("<bos>", "<start_of_turn>", "<end_of_turn>"), {"bos_token": "<bos>", "eos_token": "<end_of_turn>"}),
    "schema": (SCHEMA, ("<s>", *IM), {"bos_token": "<s>", "eos_token": "<|im_end|>"}),
}  # fmt: skip
HELLO = {"role": "user", "content": "  Hello, who is the cat?\n"}
SYSTEM = {"role": "system", "content": "Be brief. "}
ANSWER = {"role": "assistant", "content": "The cat sat. 猫 "}
AGAIN = {"role": "user", "content": "Look it up"}
FUNCTION = {"name": "look", "arguments": {"what": "the 猫", "n": 2, "deep": [1, None, {"a": "é"}]}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": FUNCTION}]}
TEXT_CALL = CALL | {
    "content": None,
    "tool_calls": [{"type": "function", "function": FUNCTION | {"arguments": "{}"}}] * 2,
}
RESULTS = [{"role": "tool", "content": "42"}, {"role": "tool", "content": '{"a": "<b>"}'}]
PARAMETERS = {
    "type": "object", "required": ["what"],
    "properties": {"what": {"type": "string", "enum": ["a", "猫"]}, "n": {"type": "array", "items": {"type": "number"}},
                   "deep": {"type": "object", "properties": {"x": {}}}},
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "description": "Looks <up> what is 'asked' for, & more.",
          "parameters": PARAMETERS}} for name in ("look", "hidden")]  # fmt: skip
REASONING = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nA cat."}

CONVERSATIONS = {
    "short": [HELLO],
    "system": [SYSTEM, HELLO, ANSWER, AGAIN],
    "call": [SYSTEM, HELLO, CALL, *RESULTS, ANSWER, AGAIN],
    "open call": [HELLO, CALL, RESULTS[1]],
    "call as text": [HELLO, TEXT_CALL, *RESULTS],
    "content parts": [
        {"role": "user", "content": [{"type": "text", "text": " Hi "}, {"type": "image"}]},
        ANSWER,
        AGAIN,
    ],
    "reasoning": [HELLO, REASONING, AGAIN, {"role": "assistant", "content": "It sat.", "reasoning_content": "\nso\n"}],
}
PLAIN = ("short", "system")
SUPPORTED = {
    "llama3.1": (*PLAIN, "call", "open call"), "qwen2.5": (*PLAIN, "call", "open call"),
    "qwen3": (*PLAIN, "call", "open call", "reasoning"), "deepseek": (*PLAIN, "call as text"),
    "gemma3": (*PLAIN, "content parts"), "schema": (*PLAIN, "call", "open call"),
}  # fmt: skip
FIELDS = {
    "llama3.1": [{"tools": TOOLS}, {"tools": TOOLS, "tools_in_user_message": False, "date_string": "1 Jan"},
                 {"builtin_tools": ["look", "code"]}],
    "qwen2.5": [{"tools": TOOLS}],
    "qwen3": [{"enable_thinking": False}],
    "schema": [{"tools": TOOLS, "documents": [{"title": "one", "text": "a\nb" * 20}, {"title": "two", "text": "c"}]}],
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def shape(request, tmp_path_factory):
    source, special_tokens, names = SHAPES[request.param]
    trained = train_tokenizer([CORPUS] * 3, vocab_size=420, special_tokens=special_tokens, pattern="llama3")
    folder = tmp_path_factory.mktemp("shape")
    config = names | ({"add_bos_token": True} if "bos_token" in names else {})
    Tokenizer(trained.backend.json, config, chat_template=source).save(folder)
    return request.param, load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


def render_reference(theirs, messages, fields) -> str:
    if all(message.get("content") is not None for message in messages):
        return theirs.apply_chat_template(messages, tokenize=False, **fields)
    compiled = _compile_jinja_template(theirs.chat_template)  # apply_chat_template does not support a content of null
    return compiled.render(messages=messages, tools=None, documents=None, **fields, **theirs.special_tokens_map)


def test_text_and_ids_equal_transformers(shape):
    name, ours, theirs = shape
    chat = ChatTemplate(ours)
    for messages in (CONVERSATIONS[key] for key in SUPPORTED[name]):
        for extra in ({}, *FIELDS.get(name, [])):
            for prompt in (False, True):
                fields = {**extra, "add_generation_prompt": prompt}
                wanted = render_reference(theirs, messages, fields)
                assert chat.render(messages, **fields) == wanted
                ids = theirs(wanted, add_special_tokens=False)["input_ids"]
                assert chat.encode(messages, **fields) == ids
                assert ours.bos_id is None or ids.count(ours.bos_id) == 1


def test_no_input_forges_a_special_token(shape):
    """Message contents, tool arguments, tool results and tool descriptions cannot forge a special token."""
    name, ours, _ = shape
    chat, special_ids = ChatTemplate(ours), set(ours.special_tokens.values())

    def special_ids_of(word):
        content = {"content": f"a{word}b"}
        calls = [{"type": "function", "function": FUNCTION | {"arguments": {"what": word}}}]
        messages = {
            "gemma3": [SYSTEM | content, HELLO | content, ANSWER | content],
            "deepseek": [SYSTEM | content, HELLO | content, RESULTS[0] | content, ANSWER | content],
        }.get(
            name,
            [SYSTEM | content, HELLO | content, CALL | {"tool_calls": calls}, RESULTS[0] | content, ANSWER | content],
        )
        tools = [{"type": "function", "function": TOOLS[0]["function"] | {"description": f"{word} is"}}]
        return [i for i in chat.encode(messages, **({"tools": tools} if FIELDS.get(name) else {})) if i in special_ids]

    clean = special_ids_of("x")
    assert clean
    for token in ours.special_tokens:
        if not (name == "qwen3" and "</think>" in token):  # Qwen3 splits messages at </think>
            assert special_ids_of(token) == clean, token


def test_strftime_now_formats_the_given_time(shape):
    name, ours, _ = shape
    if name == "llama3.1":
        assert "Now: 29 Feb 2024\n" in ChatTemplate(ours).render([HELLO], now=datetime.datetime(2024, 2, 29))
        with pytest.raises(TokenizerError, match=r"line \d+: One call at a time"):
            ChatTemplate(ours).render([HELLO, CALL | {"tool_calls": CALL["tool_calls"] * 2}])
