"""Fields that would change the answer in a way this server doesn't implement: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from livery.refusals import UnsupportedParameter


class _only:
    """Whether a value is one of these, where 0 isn't false and 1 isn't true."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def __call__(self, value: object) -> bool:
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)


class Rule(NamedTuple):
    """A field we know and don't implement, with the values that ask for nothing."""

    name: str
    harmless: _only
    remedy: str = ""


def refuse_unsupported(extra: Mapping[str, Any], rules: Sequence[Rule], at: str = "") -> None:
    """Raises UnsupportedParameter for the first of `extra`, fields outside the schema, that asks for something. `at`:
    the dotted path of the object that has them, with its last dot.
    """
    for rule in rules:
        value = extra.get(rule.name)
        if value is not None and not rule.harmless(value):
            param = at + rule.name
            raise UnsupportedParameter(f"{param} is not supported. {rule.remedy}".rstrip(), param)


IN_CHAT = "POST /v1/chat/completions takes it."
SEND_AGAIN = "Send the whole conversation in input; nothing is stored here."
NOTHING_BESIDE = "Nothing runs beside the model here."

UNSUPPORTED = (
    Rule("length_penalty", _only(1)),
    Rule("logprob_token_ids", _only()),
    Rule("watermarking", _only(False)),
    Rule("repetition_detection", _only()),
    Rule("thinking_token_budget", _only(-1)),
    Rule("truncation_side", _only()),
    Rule("return_prompt_text", _only(False), "POST /tokenize shows what a prompt becomes."),
    Rule("functions", _only(), "It is deprecated: use tools."),
    Rule("function_call", _only("none"), "It is deprecated: use tool_choice."),
    Rule("modalities", _only(["text"])),
    Rule("audio", _only()),
    Rule("web_search_options", _only()),
    Rule("moderation", _only()),
    Rule("suffix", _only("")),
    Rule("use_beam_search", _only(False)),
    Rule("chat_template", _only(), "The model's own template is used."),
    Rule("prompt_embeds", _only()),
    Rule("lora_path", _only(), "Name the adapter in `model`."),
    Rule("adapter_source", _only("local"), "Add the adapter with PUT /v1/adapters/NAME first."),
    Rule("merged_adapters", _only(), "Name several in `model`, as in a+0.5*b."),
)

# Chat templates write special tokens themselves.
UNSUPPORTED_IN_CHAT = (
    *UNSUPPORTED,
    Rule("add_special_tokens", _only(False), "The chat template writes them."),
    Rule("echo", _only(False), "/v1/completions has it; prompt_logprobs scores a conversation."),
    Rule("best_of", _only(1), "/v1/completions has it."),
)
UNSUPPORTED_IN_COMPLETIONS = (
    *UNSUPPORTED,
    Rule("tools", _only(), IN_CHAT),
    Rule("tool_choice", _only("none"), IN_CHAT),
    Rule("documents", _only([]), IN_CHAT),
    Rule("chat_template_kwargs", _only({}), IN_CHAT),
    Rule("add_generation_prompt", _only(True), IN_CHAT),
    Rule("continue_final_message", _only(False), IN_CHAT),
    Rule("top_logprobs", _only(0), "Here logprobs is the number of them."),
)

# What an answer in another API's words has no place for, in itself or in its stream.
UNSUPPORTED_IN_RETOLD = (
    *UNSUPPORTED_IN_CHAT,
    Rule("n", _only(1), IN_CHAT),
    Rule("prompt_logprobs", _only(), IN_CHAT),
    Rule("return_token_ids", _only(False), IN_CHAT),
)
UNSUPPORTED_IN_RETOLD_STREAMS = (Rule("continuous_usage_stats", _only(False), IN_CHAT),)
UNSUPPORTED_IN_RESPONSES = (
    *UNSUPPORTED_IN_RETOLD,
    Rule("messages", _only(), "In a response it is `input`."),
    Rule("max_tokens", _only(), "In a response it is `max_output_tokens`."),
    Rule("max_completion_tokens", _only(), "In a response it is `max_output_tokens`."),
    Rule("response_format", _only({"type": "text"}), "In a response it is `text.format`."),
    Rule("reasoning_effort", _only(), "In a response it is `reasoning.effort`."),
    Rule("logprobs", _only(False), 'In a response it is `include`, with "message.output_text.logprobs".'),
    Rule("store", _only(False), "Responses are not stored; leave it out or send false."),
    Rule("previous_response_id", _only(""), SEND_AGAIN),
    Rule("conversation", _only("", {}), SEND_AGAIN),
    Rule("background", _only(False), "Ask and wait, or stream."),
    Rule("prompt", _only({}), "Stored prompts aren't served; send instructions and input."),
    Rule("truncation", _only("disabled"), "Shorten the input."),
    Rule("context_management", _only([], {}), "Shorten the input."),
)
UNSUPPORTED_IN_ANTHROPICS = (
    *UNSUPPORTED_IN_RETOLD,
    Rule("max_completion_tokens", _only(), "In a message it is `max_tokens`."),
    Rule("stop", _only([]), "In a message it is `stop_sequences`."),
    Rule("response_format", _only({"type": "text"}), "In a message it is `output_config.format`."),
    Rule("reasoning_effort", _only(), "In a message it is `output_config.effort`."),
    Rule("user", _only(), "In a message it is `metadata.user_id`."),
    Rule("parallel_tool_calls", _only(True), "In a message it is `tool_choice.disable_parallel_tool_use`."),
    Rule("logprobs", _only(False), IN_CHAT),
    Rule("top_logprobs", _only(0), IN_CHAT),
    Rule("container", _only("", {}), NOTHING_BESIDE),
    Rule("mcp_servers", _only([]), NOTHING_BESIDE),
)

UNSUPPORTED_IN_MESSAGES = (Rule("function_call", _only(), "It is deprecated: use tool_calls."),)
UNSUPPORTED_IN_STRUCTURED_OUTPUTS = (
    Rule("whitespace_pattern", _only(), "Say the same with `regex` or `grammar`."),
    Rule("disable_any_whitespace", _only(False), "Say the same with `regex` or `grammar`."),
    Rule("disable_additional_properties", _only(False), 'Write "additionalProperties": false into the schema.'),
    Rule("disable_fallback", _only(True, False)),  # there is nothing to fall back to
)

UNSUPPORTED_IN_POOLING = (
    Rule("truncate_prompt_tokens", _only(), "Shorten the input."),
    Rule("messages", _only(), "Send text or token ids."),
    Rule("embed_dtype", _only("float32")),
    Rule("mm_processor_kwargs", _only()),
)
