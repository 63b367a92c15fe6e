"""What an adapter was trained to be used with: prompt, examples, documents, stops, sampling, template, parsers, tokens.

    # profile.yaml, beside the adapter's two files
    system_prompt: You are a pirate.
    examples:
      - {role: user, content: Hello}
      - {role: assistant, content: "Ahoy, matey!"}
    documents:
      - {title: The ship, text: The Walrus carries rum.}
    stop: ["<END>"]
    temperature: 0.2
    bounds: {max_tokens: {max: 256}}
    chat_template: adapter          # the one that lies beside the weights; or the template's text

    profile = parse_profile(yaml_text, "profile.yaml")     # ProfileInvalid names the field and the remedy
    profile.to_json()                                      # what a version's digest covers

One definition for the file, the API and the command line. A profile is part of a version, never of its weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import UNSET, Meta, UnsetType

from livery_adapters.likeness import meant

PROFILE_NAME = "profile.yaml"
MAX_PROFILE_BYTES = 256 << 10
MAX_EXAMPLE_CHARS = 64 << 10  # of all examples together
MAX_DOCUMENT_CHARS = 128 << 10  # of all documents together
MAX_ADDED_TOKENS = 1024
MAX_DEPTH = 32

Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Words = Annotated[str, Meta(min_length=1, max_length=32 << 10)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(min_length=1, max_length=256)]
Template = Annotated[str, Meta(min_length=1, max_length=64 << 10)]
ParserName = Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,64}\Z")]


class ProfileInvalid(ValueError):
    """A profile that can't be taken. `at` is the dotted path of the field, "" for the whole."""

    def __init__(self, at: str, reason: str) -> None:
        super().__init__(f"{at}: {reason}" if at else reason)
        self.at = at
        self.reason = reason


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Unknown keys are refused: a misspelt one would change what is served without a word."""


class Range(_Strict, frozen=True):
    """What a request may ask for, both ends included. None: no bound."""

    min: int | float | None = None
    max: int | float | None = None

    def nearest(self, value: float) -> float:
        """The allowed value closest to `value`."""
        low = value if self.min is None else max(value, self.min)
        return low if self.max is None else min(low, self.max)


class Bounds(_Strict, frozen=True):
    """Ranges by the name of the request's field."""

    temperature: Range = Range()
    top_p: Range = Range()
    min_p: Range = Range()
    presence_penalty: Range = Range()
    frequency_penalty: Range = Range()
    repetition_penalty: Range = Range()
    max_tokens: Range = Range()

    def given(self) -> Iterator[tuple[str, Range]]:
        """The fields that are bounded, by name."""
        return ((name, found) for name in self.__struct_fields__ if (found := getattr(self, name)) != Range())


class Example(_Strict, frozen=True):
    """One message of the few-shot examples."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Meta(max_length=32 << 10)]


class Document(_Strict, frozen=True):
    """A text that answers are to be taken from."""

    text: Annotated[str, Meta(min_length=1, max_length=32 << 10)]
    title: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class AddedToken(_Strict, frozen=True):
    """A token that the adapter adds to the base's vocabulary, as tokenizer.json describes it. `id` is its row."""

    id: Annotated[int, Meta(ge=0, lt=1 << 31)]
    content: Annotated[str, Meta(min_length=1, max_length=256)]
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Profile(_Strict, frozen=True):
    """All of it optional; what is left out is the base's, or nothing.

    `system_prompt_mode`: "default" is used where a client sends no system message of its own, "always" is put before
    the client's, "only" refuses the client's. `documents` follow the system prompt, whosever it is. `chat_template`
    "adapter" and `tokenizer` "adapter" ask for what lies beside the weights; a version keeps what was found there (the
    template's text, `added_tokens`, `eos_token`: the special token that ends its answers, beside the base's own).
    `pooling` makes one embedding of all tokens' (see engine.base.Pooling), `labels`
    name the classes of a classifier, one each.
    """

    system_prompt: Words | None = None
    system_prompt_mode: Literal["default", "always", "only"] = "default"
    examples: Annotated[tuple[Example, ...], Meta(max_length=64)] = ()
    documents: Annotated[tuple[Document, ...], Meta(max_length=64)] = ()
    stop: Annotated[tuple[Stop, ...], Meta(max_length=16)] = ()
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    bounds: Bounds = Bounds()
    chat_template: Template | None = None
    tokenizer: Literal["base", "adapter"] = "base"
    added_tokens: Annotated[tuple[AddedToken, ...], Meta(max_length=MAX_ADDED_TOKENS)] = ()
    eos_token: Stop | None = None
    tool_parser: ParserName | None = None
    reasoning_parser: ParserName | None = None
    response_format: dict[str, Any] | UnsetType = UNSET
    pooling: Literal["last", "mean"] | None = None
    labels: Annotated[tuple[Label, ...], Meta(max_length=4096)] = ()

    @property
    def schema(self) -> str | None:
        """The JSON schema that answers follow where the request asks for no format, as JSON text."""
        if isinstance(self.response_format, UnsetType):
            return None
        if self.response_format["type"] == "json_object":
            return '{"type": "object"}'
        wanted = self.response_format.get("json_schema")
        return json.dumps(wanted["schema"]) if wanted else None

    def to_json(self) -> dict[str, Any]:
        """What was given, as plain JSON values: what a version records and its digest covers."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        if "bounds" in plain:
            plain["bounds"] = {name: bound for name, bound in plain["bounds"].items() if bound}
        return {key: value for key, value in plain.items() if value not in ({}, [])}


EMPTY = Profile()
FIELDS = Profile.__struct_fields__
TEXTS = ("system_prompt", "examples", "documents", "chat_template", "added_tokens", "response_format", "labels")
"""The fields that may be long: for one adapter, never for a list of them."""


def read_profile(value: object) -> Profile:
    """A profile from JSON or YAML values, as `to_json` gives them. Raises ProfileInvalid."""
    if value is None:
        return EMPTY
    try:
        plain = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # half characters, endless numbers, depth
        raise ProfileInvalid("", f"it holds what JSON can't ({' '.join(str(error).split())[:100]})") from None
    profile = recorded_profile(plain)
    _check(profile)
    return profile


def recorded_profile(plain: Mapping[str, object]) -> Profile:
    """A profile from what `to_json` gave, whose values were checked before. Raises ProfileInvalid."""
    try:
        return msgspec.convert(plain, Profile)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None


def profile_schema() -> dict[str, Any]:
    """The JSON schema of a profile, for the API's own document, all of it in one piece."""
    (schema,), parts = msgspec.json.schema_components([Profile], ref_template="{name}")

    def whole(node: Any) -> Any:  # noqa: ANN401  (JSON)
        if isinstance(node, dict):
            return whole(parts[node["$ref"]]) if "$ref" in node else {key: whole(item) for key, item in node.items()}
        return [whole(item) for item in node] if isinstance(node, list) else node

    found: dict[str, Any] = whole(schema)
    return found


def parse_profile(data: bytes, what: str = PROFILE_NAME) -> Profile:
    """The profile that a YAML file holds. Raises ProfileInvalid, whose words begin with the file's name, `what`."""
    try:
        return read_profile(_yaml(data))
    except ProfileInvalid as invalid:
        raise ProfileInvalid(invalid.at, f"{invalid.reason} (in {what})") from None


def write_profile(profile: Profile) -> str:
    """The profile as a file that `parse_profile` reads."""
    text: str = yaml.dump(profile.to_json(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _check(profile: Profile) -> None:
    """What the types alone don't say. Raises ProfileInvalid."""
    for name, bound in profile.bounds.given():
        at = f"bounds.{name}"
        if bound.min is not None and bound.max is not None and bound.min > bound.max:
            raise ProfileInvalid(at, f"min {bound.min:g} is above max {bound.max:g}")
        if name == "max_tokens" and bound.max is not None and bound.max < 1:
            raise ProfileInvalid(at, f"max {bound.max:g} allows no token at all; give 1 or more")
        given = getattr(profile, name)
        if given is not None and bound.nearest(given) != given:
            raise ProfileInvalid(name, f"{given:g} is outside the profile's own {at}; change one of them")
    long = sum(len(example.content) for example in profile.examples)
    if long > MAX_EXAMPLE_CHARS:
        raise ProfileInvalid("examples", f"{long} characters in all; at most {MAX_EXAMPLE_CHARS}")
    long = sum(len(document.text) for document in profile.documents)
    if long > MAX_DOCUMENT_CHARS:
        raise ProfileInvalid("documents", f"{long} characters in all; at most {MAX_DOCUMENT_CHARS}")
    if profile.examples and profile.examples[-1].role != "assistant":
        raise ProfileInvalid("examples", "the last one is a user's; end with the assistant's answer to it")
    if profile.system_prompt_mode != "default" and profile.system_prompt is None:
        raise ProfileInvalid("system_prompt_mode", "there is no system_prompt that it could be about; give one")
    if not isinstance(profile.response_format, UnsetType):
        _check_format(profile.response_format)
    size = len(json.dumps(profile.to_json()))
    if size > MAX_PROFILE_BYTES:
        raise ProfileInvalid("", f"the profile has {size} characters as JSON; at most {MAX_PROFILE_BYTES}")


def _check_format(given: Mapping[str, Any]) -> None:
    kind = given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise ProfileInvalid("response_format.type", "give text, json_object or json_schema")
    unknown = set(given) - {"type", "json_schema"}
    if unknown:
        raise ProfileInvalid(f"response_format.{min(unknown)}", "unknown key; give type and json_schema")
    if kind == "json_schema" and not (
        isinstance(given.get("json_schema"), dict) and isinstance(given["json_schema"].get("schema"), dict | bool)
    ):
        raise ProfileInvalid("response_format.json_schema", "give name and schema, as a request's response_format does")


def _explained(said: str) -> ProfileInvalid:
    """msgspec's words, with the path as clients write paths and the nearest name of a misspelt key."""
    reason, _, path = said.partition(" - at `$")
    at = path.rstrip("`").replace("[", ".").replace("]", "").lstrip(".")
    if reason.startswith("Object contains unknown field `"):
        name = reason.split("`")[1]
        known = _known_at(at)
        hint = meant(name, known) or f"it may give {', '.join(known)}"
        return ProfileInvalid(f"{at}.{name}".lstrip("."), f"unknown key; {hint}")
    return ProfileInvalid(at, reason[:1].lower() + reason[1:])


def _known_at(at: str) -> Sequence[str]:
    """The keys of the mapping at a path."""
    first, *rest = at.split(".")
    if first == "bounds":
        return Range.__struct_fields__ if rest else Bounds.__struct_fields__
    inner = {"examples": Example, "documents": Document, "added_tokens": AddedToken}.get(first, Profile)
    return inner.__struct_fields__


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as such: a template in one line is nothing for people."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text.strip() else None)


_Dumper.add_representer(str, _text_node)


# -- YAML from strangers -----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Without aliases, which turn few bytes into many values, and without a key twice."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write the value out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.YAMLError("a key stands there twice")
        return mapping


def _yaml(data: bytes) -> object:
    """The values in a YAML file. Raises ProfileInvalid."""
    if len(data) > MAX_PROFILE_BYTES:
        raise ProfileInvalid("", f"the file has {len(data)} bytes; at most {MAX_PROFILE_BYTES}")
    try:
        return yaml.load(data.decode("utf-8"), Loader=_Loader)
    except UnicodeDecodeError:
        raise ProfileInvalid("", "it is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ProfileInvalid("", f"it is not YAML: {' '.join(str(error).split())[:300]}") from None
