"""How an answer's text is read: reasoning apart from content, and calls apart from both. And how a model whose chat
template has no place for tools is told of them.

The format of calls and the style of reasoning are named by the adapter's profile or the server's settings, and with
"auto" recognised from the chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from livery.chat_template import SYSTEM_ROLES, InvalidMessages, Message
from livery.jobs import ChatPrompt, Job, Options, Prompt
from livery.refusals import AdapterUnusable, UnsupportedParameter
from livery.tools.events import Part, TextParser, ToolFormat
from livery.tools.formats import AUTO, format_of
from livery.tools.parsers import unknown_parser
from livery.tools.reasoning import STYLES, ReasoningSplit, reasoning_style
from livery.tools.use import call_id
from livery_adapters.profile import Profile

# A prompt that ends in the mark that opens reasoning ends in few tokens after it.
TAIL_TOKENS = 16


class Template(Protocol):
    """A chat template, the base's or an adapter's."""

    source: str

    def reads(self, variable: str) -> bool:
        """Whether it looks at a variable that it is given."""
        ...


@dataclass(frozen=True, slots=True)
class ParserNames:
    """Which format of calls and which style of reasoning are asked for: names, "auto" or "none"."""

    tools: str = "auto"
    reasoning: str = "auto"


AS_THE_TEMPLATE = ParserNames()


@dataclass(frozen=True, slots=True)
class CallDelta:
    """New text of one call. The first one of a call has its `id` and the function's `name`; then come `arguments`.

    `broken`: the call turned out to be none and its text comes as content.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    broken: bool = False


@dataclass(slots=True)
class Read:
    """What a piece of text holds, in this order: reasoning, content, calls."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[CallDelta, ...] = ()


class AnswerReader:
    """Reads the text of one answer. `called` once a call is whole.

    Of calls only the first `most_calls` that don't break are told. Each keeps the index that it has in the text: a
    stream can't take back a call that broke, and what follows it must not be added to that one's arguments.
    """

    def __init__(
        self, stages: Sequence[TextParser], new_id: Callable[[], str], *, show_reasoning: bool, most_calls: int | None
    ) -> None:
        self._stages = list(stages)
        self._new_id = new_id
        self._show_reasoning = show_reasoning
        self._left = most_calls  # calls that may still be told
        self._telling = -1  # the index of the last one that was
        self.called = False

    def read(self, text: str, *, last: bool) -> list[Read]:
        """What is certain with this piece of text, or at the end of the answer."""
        parts = [Part("content", text)] if text else []
        for stage in self._stages:
            through: list[Part] = []
            for part in parts:
                through += stage.feed(part.text) if part.kind == "content" else [part]
            parts = through + (stage.finish() if last else [])
        return self._grouped(parts)

    def _grouped(self, parts: Sequence[Part]) -> list[Read]:
        found: list[Read] = []
        rank = 0
        for part in parts:
            kind = {"reasoning": 0, "content": 1}.get(part.kind, 2)
            if not found or kind < rank:
                found.append(Read())
            rank = kind
            if part.kind == "content":
                found[-1].text += part.text
            elif part.kind == "reasoning":
                found[-1].reasoning += part.text if self._show_reasoning else ""
            else:
                found[-1].calls += self._call(part)
        return [read for read in found if read.text or read.reasoning or read.calls]

    def _call(self, part: Part) -> tuple[CallDelta, ...]:
        if part.kind == "call" and self._left != 0:
            self._telling = part.index
            self._left = None if self._left is None else self._left - 1
            return (CallDelta(part.index, self._new_id(), part.text),)
        if part.index != self._telling:
            return ()
        if part.kind == "arguments":
            return (CallDelta(part.index, arguments=part.text),) if part.text else ()
        if part.kind == "broken":
            self._left = None if self._left is None else self._left + 1
            return (CallDelta(part.index, broken=True),)
        self.called = True
        return ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are read. `unknown`: the format of calls is to be the template's, which is none
    of those that are known.
    """

    options: Options
    form: ToolFormat | None
    style: str | None
    unknown: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """What parsers look for, which special tokens may be."""
        tools = self.form.markers if self.form and self.options.tools else ()
        return (*tools, *(STYLES[self.style] if self.style else ()))

    def reader(self, prompt_tail: str) -> AnswerReader | None:
        """For one answer to a prompt that ends like this; None where its text is all content."""
        stages: list[TextParser] = []
        if self.style and self.options.grammar is None:  # what follows a grammar begins with the answer itself
            opened = prompt_tail.rstrip().endswith(STYLES[self.style][0])
            stages.append(ReasoningSplit(self.style, opened=opened))
        parser = self.options.tools.parser(self.form) if self.options.tools else None
        if parser is not None:
            stages.append(parser)
        if not stages:
            return None
        new_id = self.form.call_id if self.form else call_id
        alone = self.options.tools is not None and not self.options.tools.parallel
        return AnswerReader(
            stages, new_id, show_reasoning=self.options.include_reasoning, most_calls=1 if alone else None
        )


def reading_of(job: Job, profile: Profile, asked: ParserNames, template: Template | None) -> Reading | None:
    """How the answers to a conversation are read, as the profile asks or else the server; None for other prompts.

    Raises AdapterUnusable where the profile names a parser that isn't there.
    """
    if not any(isinstance(prompt, ChatPrompt) for prompt in job.prompts):
        return None
    if unknown := unknown_parser(profile.tool_parser, profile.reasoning_parser):
        raise AdapterUnusable(job.model, f"its profile's {unknown}")
    source = template.source if template else None
    named = profile.tool_parser or asked.tools
    form = format_of(named, source)
    style = reasoning_style(profile.reasoning_parser or asked.reasoning, source)
    return Reading(job.options, form, style, unknown=form is None and named == AUTO)


def untold_calls(asked: ParserNames, template: Template | None) -> str:
    """What an operator should know of a base whose template tells tools but writes calls in no format that is known;
    empty where there is nothing to tell.
    """
    if asked.tools != AUTO or template is None or not template.reads("tools") or format_of(AUTO, template.source):
        return ""
    return (
        "the base's chat template tells tools and writes calls in no format that is known: requests with tools and "
        "tool_choice 'auto' are refused; name the format with --tool-parser, or none to have calls as text"
    )


def told_of_tools(job: Job, reading: Reading | None, template: Template | None) -> Job:
    """The request with tools and calls where its template shows them: in its own place for them, or in messages as the
    format has it. Raises InvalidMessages where neither is known.
    """
    if reading is None or template is None:
        return job
    return replace(job, prompts=[_told(prompt, reading, template) for prompt in job.prompts])


def held_to_strict(job: Job, reading: Reading | None, special: Callable[[Sequence[str]], Mapping[int, str]]) -> Job:
    """The request with the calls of strict functions held to their schemas also where none must be made. `special`
    tells which marks are special tokens, by id.

    An answer that is held to a format of its own is no call. Raises UnsupportedParameter where calls have no marks, or
    would be taken for text.
    """
    options = job.options
    if reading is None or options.tools is None or options.tools.choice != "auto" or options.grammar is not None:
        return job
    if reading.unknown:
        raise UnsupportedParameter(
            "tools with tool_choice 'auto' are not supported here: the model's chat template writes calls in no format "
            "that is known, so that they couldn't be told from text. Send tool_choice 'required' or a function's name, "
            "or let the operator name the format with --tool-parser or in the adapter's profile (none: calls come as "
            "text).",
            "tools",
        )
    at = options.tools.strict
    if at is None:
        return job
    if reading.form is None or reading.form.around is None:
        form = f"calls in the form {reading.form.name!r}" if reading.form else "calls that come as text"
        raise UnsupportedParameter(
            f"Function {options.tools.functions[at].name!r} is strict, and {form} are held to a schema only where they "
            "must be made: send tool_choice 'required' or the function's name, or leave strict out.",
            f"tools.{at}.function.strict",
        )
    tokens = {text: token for token, text in special(reading.form.around).items()}
    grammar = options.tools.strict_grammar(reading.form.around, tokens)
    return replace(job, options=replace(options, grammar=grammar, grammar_param="tools"))


def _told(prompt: Prompt, reading: Reading, template: Template) -> Prompt:
    if not isinstance(prompt, ChatPrompt):
        return prompt
    if prompt.tools and not template.reads("tools"):
        messages = prompt.messages
        if reading.options.tools is not None:
            messages = _with_system(messages, _form(reading, "tools").preamble(prompt.tools))
        prompt = replace(prompt, tools=None, messages=messages)
    if "tool_calls" not in template.source and any(message.get("tool_calls") for message in prompt.messages):
        prompt = replace(prompt, messages=[_calls_in_content(message, reading) for message in prompt.messages])
    return prompt


def _form(reading: Reading, param: Literal["tools", "messages"]) -> ToolFormat:
    if reading.form is None:
        raise InvalidMessages(
            "the model's chat template has no place for tools; describe them in the system message, or let the "
            "operator name a format with --tool-parser (hermes fits most models) or in the adapter's profile",
            param,
        )
    return reading.form


def _with_system(messages: Sequence[Message], words: str) -> list[Message]:
    """The words at the end of the system message, or as one."""
    first = messages[0]
    if first["role"] not in SYSTEM_ROLES:
        return [{"role": "system", "content": words}, *messages]
    return [{**first, "content": f"{first['content']}\n\n{words}"}, *messages[1:]]


def _calls_in_content(message: Message, reading: Reading) -> Message:
    calls: Any = message.get("tool_calls")
    if not calls:
        return message
    functions: list[Mapping[str, object]] = [call.get("function") or {} for call in calls]
    text = _form(reading, "messages").call_text(functions)
    content = str(message.get("content") or "")
    return {**message, "content": f"{content}\n{text}" if content else text}
