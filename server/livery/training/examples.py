"""What is learnt from: lines of files as typed examples, and what of them can't be used, by file, line and reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livery.chat_template import REASONING
from livery.foreign_json import NotPlain, check_plain, parse_line
from livery.training.raft import raft_messages
from livery.training.run_file import AnyRun, Cpt, Dpo, Raft

Message = Mapping[str, object]
ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_SHOWN = 40  # characters of a value that is wrong
# What of a message, a tool and its function templates are given first, in the order of a server's requests: some write
# tools down as they come.
_WORDS_OF_MESSAGES = ("name", "tool_call_id", *REASONING)
_OF_MESSAGES = {"role", "content", "tool_calls", *_WORDS_OF_MESSAGES}
_OF_TOOLS, _OF_FUNCTIONS = ("type", "function"), ("name", "description", "parameters", "strict")


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, and the tools it may call."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which the first is the better; text where the base has no chat template."""

    prompt: tuple[Message, ...] | str
    chosen: Message | str
    rejected: Message | str


@dataclass(frozen=True, slots=True)
class Passage:
    """A document."""

    text: str


Example = Chat | Preference | Passage


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was read."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Broken:
    """A line that can't be used, and why."""

    place: Place
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


class Unusable(Exception):
    """What a line says can't be learnt; the message is the reason."""


class DataInvalid(Exception):
    """The data can't be used; the message names the file, the line, the reason and the remedy."""


@dataclass(slots=True)
class Found:
    """The examples of some files in their order, what is broken, fields that nobody reads, the files' SHA-256."""

    examples: list[tuple[Place, Example]] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    sha256: list[str] = field(default_factory=list)


def read_examples(files: Sequence[Path], run: AnyRun) -> Found:
    """All examples of some files. Raises DataInvalid where a file can't be read at all."""
    found = Found()
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataInvalid(
                f"data {file}: {error.strerror}; name files that are there, counted from the YAML file's folder"
            ) from error
        found.sha256.append(hashlib.sha256(content).hexdigest())
        if isinstance(run, Cpt) and file.suffix not in (".jsonl", ".json"):
            _read_text(file, content, found)
        else:
            _read_lines(file, content, run, found)
    return found


def json_lines(file: Path, content: bytes) -> Iterator[tuple[Place, dict[str, Any] | Broken]]:
    """Each line that isn't empty, as an object or as what is wrong with it."""
    for place, line in _lines(file, content):
        if isinstance(line, Broken):
            yield place, line
            continue
        try:
            value = parse_line(line)
        except NotPlain as unreadable:
            yield place, Broken(place, str(unreadable))
        else:
            wrong = Broken(place, f"{_shown(value)} instead of an object in {{}}")
            yield place, value if isinstance(value, dict) else wrong


def text_of(given: Mapping[str, Any], name: str) -> str:
    """A field that is text and not empty. Raises Unusable."""
    if name not in given:
        raise Unusable(f"no `{name}`" + (f"; there are {', '.join(sorted(given))}" if given else ""))
    value = given[name]
    if not isinstance(value, str):
        raise Unusable(f"`{name}` is {_shown(value)} and not text")
    if not value.strip():
        raise Unusable(f"`{name}` is empty")
    return value


def texts_of(given: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a list of texts, none empty. Raises Unusable."""
    value = given.get(name)
    if not isinstance(value, list) or not value:
        raise Unusable(f"no `{name}`" if name not in given else f"`{name}` is {_shown(value)} and not a list of texts")
    return [text_of({f"{name}[{at}]": one}, f"{name}[{at}]") for at, one in enumerate(value)]


# -- inside ------------------------------------------------------------------------------------------------


def _lines(file: Path, content: bytes) -> Iterator[tuple[Place, str | Broken]]:
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        place = Place(file.name, number)
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield place, Broken(place, f"not UTF-8: byte {error.start + 1} is 0x{line[error.start]:02x}")
            continue
        if text.strip():
            yield place, text


def _read_text(file: Path, content: bytes, found: Found) -> None:
    """A document without those of its lines that aren't text."""
    kept = []
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            kept.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            kept.append("")  # told of below
    found.broken += [line for _, line in _lines(file, content) if isinstance(line, Broken)]
    text = "\n".join(kept).replace("\r\n", "\n")
    if text.strip():
        found.examples.append((Place(file.name, 1), Passage(text)))


def _read_lines(file: Path, content: bytes, run: AnyRun, found: Found) -> None:
    read, fields = _reader(run)
    for place, line in json_lines(file, content):
        if isinstance(line, Broken):
            found.broken.append(line)
            continue
        try:
            found.examples.append((place, read(line)))
        except Unusable as unusable:
            found.broken.append(Broken(place, str(unusable)))
        else:
            found.unread |= _unread(line, fields)


def _reader(run: AnyRun) -> tuple[Callable[[dict[str, Any]], Example], set[str]]:
    """What makes an example of a line, and the fields that it reads."""
    match run:
        case Dpo():
            return _preference, {"prompt", "chosen", "rejected"}
        case Cpt():
            return lambda line: Passage(text_of(line, "text")), {"text"}
        case Raft():
            return lambda line: _raft(line, run), {"question", "documents", "answer"}
    return _chat, {"messages", "tools"}


def _unread(line: dict[str, Any], fields: set[str]) -> set[str]:
    """What nobody looks at, in the line and in its messages."""
    unread = line.keys() - fields
    for name in fields & line.keys():
        for one in line[name] if isinstance(line[name], list) else ():
            if isinstance(one, dict) and "role" in one:
                unread |= {f"{name}[].{key}" for key in one.keys() - _OF_MESSAGES if one[key] is not None}
    return unread


def _chat(line: dict[str, Any]) -> Chat:
    messages = _messages(line, "messages")
    if not any(message["role"] == "assistant" for message in messages):
        raise Unusable("no message of the assistant's, so there is nothing to learn")
    if messages[-1]["role"] != "assistant":
        raise Unusable(f"the last message is the {messages[-1]['role']}'s: it must be the assistant's")
    tools = line.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unusable(f"`tools` is {_shown(tools)} and not a list of objects")
    return Chat(messages, tuple(_tool(tool) for tool in tools))


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """As a server gives it to templates: without what is null, its fields in one order."""
    function = tool.get("function")
    plain = {**tool, "function": _ordered(function, _OF_FUNCTIONS)} if isinstance(function, dict) else tool
    return _ordered(plain, _OF_TOOLS)


def _ordered(given: dict[str, Any], first: Sequence[str]) -> dict[str, Any]:
    names = [*(name for name in first if name in given), *(name for name in given if name not in first)]
    return {name: given[name] for name in names if given[name] is not None}


def _raft(line: dict[str, Any], run: Raft) -> Chat:
    question, documents, answer = text_of(line, "question"), texts_of(line, "documents"), text_of(line, "answer")
    asked = raft_messages(question, documents, run.prompt, run.system)
    return Chat((*asked, {"role": "assistant", "content": answer}))


def _preference(line: dict[str, Any]) -> Preference:
    if isinstance(line.get("prompt"), list):
        messages = _messages(line, "prompt")
        if messages[-1]["role"] not in ("user", "tool"):
            raise Unusable("the last message of `prompt` must be the user's, or a tool's")
        prompt: tuple[Message, ...] | str = messages
    else:
        prompt = text_of(line, "prompt")
    chosen, rejected = _answer(line, "chosen"), _answer(line, "rejected")
    if chosen == rejected:
        raise Unusable("`chosen` and `rejected` are the same, so nothing is preferred")
    return Preference(prompt, chosen, rejected)


def _answer(line: dict[str, Any], name: str) -> Message | str:
    """Text, or the last of a list of messages, as others write it."""
    if not isinstance(line.get(name), list):
        return text_of(line, name)
    messages = _messages(line, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Unusable(
            f"`{name}` has {len(messages)} messages: give one, the assistant's; those before go into `prompt`"
        )
    return messages[0]


def _messages(line: dict[str, Any], name: str) -> tuple[Message, ...]:
    value = line.get(name)
    if name not in line:
        raise Unusable(f"no `{name}`" + (f"; there are {', '.join(sorted(line))}" if line else ""))
    if not isinstance(value, list) or not value:
        raise Unusable(f"`{name}` is {_shown(value)} and not a list of messages")
    return tuple(_message(one, f"{name}[{at}]") for at, one in enumerate(value))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise Unusable(f"`{where}` is {_shown(value)} and not an object with role and content")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise Unusable(f"`{where}.role` is {_shown(role)}; one of {', '.join(ROLES)} is expected")
    calls = value.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Unusable(f"`{where}.tool_calls` is {_shown(calls)} and not a list of objects")
    if isinstance(content, list):  # parts, as clients send them
        content = "\n".join(_part(part, f"{where}.content") for part in content)
    if content is None and role == "assistant" and calls:
        content = ""
    if not isinstance(content, str):
        raise Unusable(f"`{where}.content` is {_shown(content)} and not text")
    if role == "assistant" and not content.strip() and not calls:
        raise Unusable(f"`{where}.content` is empty, and that is what the assistant is to say")
    plain: dict[str, object] = {"role": role, "content": content}
    for name in _WORDS_OF_MESSAGES:
        if (word := value.get(name)) is not None:
            if not isinstance(word, str):
                raise Unusable(f"`{where}.{name}` is {_shown(word)} and not text")
            plain[name] = word
    if calls:
        plain["tool_calls"] = [_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)]
    return plain


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """As a server gives it to templates: arguments as an object, not as the JSON text by which the API carries them."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
        check_plain(arguments)
    except NotPlain as wrong:
        raise Unusable(f"`{where}.function.arguments`, as JSON: {wrong}") from wrong
    except RecursionError:
        raise Unusable(f"`{where}.function.arguments` is nested too deeply") from None
    except ValueError:  # as what it is
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in ("text", "refusal") and isinstance(part.get(kind), str):
        return str(part[kind])
    raise Unusable(f"`{where}` has {_shown(part)}: only parts that are text can be learnt")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"
