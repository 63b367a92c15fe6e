"""Chat templates in the styles of families, written for these tests: what they read, and how they write it, differs."""

from __future__ import annotations

# ChatML with tools as Hermes and Qwen have them: a preamble in the system turn, calls and results between tags.
HERMES = """\
{%- macro call(tool_call) -%}
<tool_call>
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
</tool_call>
{%- endmacro -%}
{%- set system = messages[0].content if messages[0].role == 'system' else 'You help.' -%}
<|im_start|>system
{{ system }}
{%- if tools %}

# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
{%- endif %}<|im_end|>
{% for message in (messages[1:] if messages[0].role == 'system' else messages) %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n' }}{% endif %}
        {{- message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first }}{{ call(tool_call.function) }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

# Llama 3: headers, a date, tools pretty-printed into the first user turn, a namespace, trimmed contents.
LLAMA3 = """\
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- set ns = namespace(told=false) %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n' }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ message.content | trim }}{% continue %}{% endif %}
    {{- '<|eot_id|><|start_header_id|>' + ('ipython' if message.role == 'tool' else message.role) }}
    {{- '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'user' and tools and not ns.told %}
        {%- set ns.told = true %}
        {%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n\\n' }}{% endfor %}
    {%- endif %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{ raise_exception('one tool call at once') }}{% endif %}
        {%- set called = message.tool_calls[0].function %}
        {{- '{"name": "' + called.name + '", "parameters": ' }}{{ called.arguments | tojson }}{{ '}' }}
    {%- else %}
        {%- generation %}{{ message.content | trim }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{{- '<|eot_id|>' }}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

# Mistral: no system turn, tools right before the last user turn, results by their call's id.
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if loop.last and tools is not none %}
            {{- '[AVAILABLE_TOOLS] ' ~ (tools | tojson) ~ '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' ~ message.content ~ '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for tool_call in message.tool_calls %}
            {%- set called = tool_call.function %}
            {{- {'name': called.name, 'arguments': called.arguments, 'id': tool_call.id} | tojson }}
            {{- ', ' if not loop.last }}
        {%- endfor %}
        {{- ']' ~ eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content ~ eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' ~ message.content }}
        {{- ', "call_id": "' ~ message.tool_call_id ~ '"}[/TOOL_RESULTS]' }}
    {%- elif message.role == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}
    {%- else %}
        {{- raise_exception('Mistral knows no ' + message.role) }}
    {%- endif %}
{%- endfor %}
"""

# Phi: documents and tools in the system turn; JSON in ASCII.
PHI = """\
{%- for message in messages %}
    {{- '<|' + message.role + '|>' }}
    {{- message.content }}
    {%- if loop.first and tools %}{{ '<|tool|>' + (tools | tojson(ensure_ascii=true)) + '<|/tool|>' }}{% endif %}
    {%- if loop.first and documents %}
        {%- for document in documents %}
            {{- '\\n[' ~ loop.index ~ '] ' ~ document.title ~ ': ' ~ document.text }}
        {%- endfor %}
    {%- endif %}
    {%- if message.tool_calls %}
        {{- '<|tool_call|>' + (message.tool_calls | map(attribute='function') | list | tojson) }}
    {%- endif %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""

# Qwen3-Coder: what stands between Hermes's tags is no JSON.
QWEN3_CODER = """\
{%- if tools %}{{ '<|im_start|>system\\n<tools>' ~ (tools | tojson) ~ '</tools><|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '<tool_call>\\n<function=' + tool_call.function.name + '>\\n' }}
        {%- for name, value in tool_call.function.arguments | items %}
            {{- '<parameter=' + name + '>\\n' ~ value ~ '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# GLM 4.5: neither is what it writes between these tags.
GLM = """\
{%- if tools %}{{ '<|system|>\\n<tools>' ~ (tools | tojson) ~ '</tools>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + (message.content or '') }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '<tool_call>' + tool_call.function.name + '\\n' }}
        {%- for name, value in tool_call.function.arguments | items %}
            {{- '<arg_key>' + name + '</arg_key>\\n<arg_value>' ~ value ~ '</arg_value>\\n' }}
        {%- endfor %}
        {{- '</tool_call>' }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
"""

# One that tells tools and writes calls as nobody else does.
UNKNOWN = """\
{%- if tools %}{{ 'TOOLS ' ~ (tools | tojson) ~ '\\n' }}{% endif %}
{%- for message in messages %}{{ message.role + ': ' + (message.content or '') + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}
"""

STYLES = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL, "phi": PHI, "qwen3_coder": QWEN3_CODER}
