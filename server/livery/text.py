"""Between text and token ids: encoding and incremental decoding.

Reads the `tokenizers` files of a model directory and needs neither torch nor transformers, so that the API
process stays small. Knows no HTTP, no engine and no adapter; chat templates are in `chat_template`, stop strings in
`stops`.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken as FastAddedToken
from tokenizers import Tokenizer as FastTokenizer

from livery.chat_template import ChatTemplate, Conversation, InvalidMessages, Message
from livery.foreign_templates import ForeignTemplate
from livery.token_text import TokenBytes
from livery.tokenizer_files import TokenizerFiles, load_tokenizer_files
from livery_adapters.profile import AddedToken

__all__ = ["Detokenizer", "InvalidMessages", "PromptTooLong", "Tokenizer"]

# Prompt tokens decoded along with the first generated ones, so that a leading space survives.
CONTEXT_TOKENS = 6
# An incomplete character is at most three bytes, so this many undecodable tokens are simply bad bytes.
MAX_UNDECODED_TOKENS = 8
REPLACEMENT = "\ufffd"
# Characters above which encoding is called as for many texts: tokenizers keeps the interpreter's lock otherwise.
LONG_TEXT = 8192


class PromptTooLong(Exception):
    """A prompt has so many characters that it can't fit, and wasn't encoded. `at_least` is in tokens."""

    def __init__(self, at_least: int) -> None:
        super().__init__(f"the prompt is {at_least} tokens or more")
        self.at_least = at_least


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a client must know to write prompts itself: special tokens by name, and the chat template (Jinja)."""

    named_tokens: Mapping[str, str]
    chat_template: str | None


class TokensDiffer(ValueError):
    """Added tokens that don't fit behind the base's; the message says which."""


class Tokenizer:
    """Text to ids and back for one model. Safe to share between threads: nothing changes after the start."""

    def __init__(self, files: TokenizerFiles, added: Sequence[AddedToken] = ()) -> None:
        """`added` are tokens beyond the files', by id. Raises TokensDiffer where they can't have the ids they say."""
        self.files = files
        self._fast = _load(files.tokenizer, added)
        # The same tokenizer reading special tokens as plain text.
        self._literal = _load(files.tokenizer, added)
        self._literal.encode_special_tokens = True
        added_tokens = self._fast.get_added_tokens_decoder().items()
        self._special_ids = {id: token.content for id, token in added_tokens if token.special}
        specials = sorted(self._special_ids.values(), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials))) if specials else None
        self._token_bytes = TokenBytes(self._fast)
        self._longest = max(map(len, self._fast.get_vocab(with_added_tokens=True)))
        self.facts = TokenizerFacts(files.named_tokens, files.chat_template)
        self.template: ChatTemplate | ForeignTemplate | None = None
        if files.chat_template:
            self.template = ChatTemplate(files.chat_template, files.named_tokens)

    @classmethod
    def from_directory(cls, directory: Path) -> Tokenizer:
        """Load from a model directory. Raises TokenizerRefused."""
        return cls(load_tokenizer_files(directory))

    def with_template(self, template: ForeignTemplate, named_tokens: Mapping[str, str]) -> Tokenizer:
        """The same tokens, and a chat template and names of tokens as an adapter has them."""
        other = copy.copy(self)
        other.template = template
        other.facts = TokenizerFacts(named_tokens, template.source)
        return other

    @property
    def tells_time(self) -> bool:
        """Whether its chat template writes the time, or the day, into what it renders."""
        return isinstance(self.template, ChatTemplate) and self.template.tells_time

    def at(self, time: datetime) -> Tokenizer:
        """The same, by whose chat template it is always `time`."""
        other = copy.copy(self)
        if self.files.chat_template:
            other.template = ChatTemplate(self.files.chat_template, self.files.named_tokens, lambda: time)
        return other

    def with_tokens(self, added: Sequence[AddedToken]) -> Tokenizer:
        """The same with tokens added, by id; takes a moment. Raises TokensDiffer."""
        return Tokenizer(self.files, added)

    @property
    def foreign_template(self) -> ForeignTemplate | None:
        """The template where it is an adapter's: rendering blocks, see its `apart`."""
        return self.template if isinstance(self.template, ForeignTemplate) else None

    def encode(self, text: str, room: int | None = None) -> list[int]:
        """Token ids of a raw prompt, with the special tokens (such as BOS) the model expects around it.

        Raises PromptTooLong without encoding it when `room`, in tokens, can't hold that many characters.
        """
        self._check_room(len(text), room)
        return _encode(self._fast, text, add_special_tokens=True)

    def encode_bare(self, text: str, room: int | None = None) -> list[int]:
        """As `encode`, without special tokens around the text."""
        self._check_room(len(text), room)
        return _encode(self._fast, text, add_special_tokens=False)

    def encode_chat(self, chat: Conversation | Sequence[Message], room: int | None = None) -> list[int]:
        """Token ids of a conversation, or of bare messages, ending where the assistant is to speak or to go on.

        Special tokens come from the template alone: the same characters in what it is given are encoded as the
        plain text they are. Raises InvalidMessages when the template can't render the conversation, and
        PromptTooLong as `encode` does.
        """
        if self.template is None:
            raise InvalidMessages(
                "this model has no chat template; send a prompt to /v1/completions instead", param="messages"
            )
        hidden = _Hidden(self._specials)
        rendered = self.template.render(
            hidden.conversation(chat if isinstance(chat, Conversation) else Conversation(chat))
        )
        # Only here, because templates may leave out parts of what they are given.
        self._check_room(len(hidden.reveal(rendered)), room)
        if not hidden.count:
            return _encode(self._fast, rendered, add_special_tokens=False)
        return self._encode_apart(rendered, hidden)

    def to_json(self) -> str:
        """The text of a `tokenizer.json` that says the same."""
        return str(self._fast.to_str())

    def encode_pair(self, first: str, second: str, room: int | None = None) -> list[int]:
        """Token ids of two texts as the model's tokenizer joins them. Raises PromptTooLong as `encode` does."""
        self._check_room(len(first) + len(second), room)
        return _encode(self._fast, (first, second), add_special_tokens=True)

    def beginning(self) -> list[int]:
        """The special tokens that the model expects before any text: mostly none, or its BOS."""
        alone, bare = self.encode("a"), self.encode_bare("a")
        return alone[: alone.index(bare[0])] if bare and bare[0] in alone else []

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text by itself, nothing added; special tokens' characters are text."""
        return self._encode_literal(text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some ids, without special tokens or with them."""
        return self._fast.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, which may be a piece of a character; nothing for an id that isn't known."""
        return self._token_bytes.of(token_id)

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens as they are written."""
        return self._fast.decode(ids, skip_special_tokens=False)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it; empty for an id that only the model's padding has."""
        return [self._fast.id_to_token(token) or "" for token in ids]

    def says_nothing(self, token_id: int) -> bool:
        """Whether a token is no text wherever it stands: a special one, or an id without a token."""
        return token_id in self._special_ids or self._fast.id_to_token(token_id) is None

    def special_tokens(self, texts: Sequence[str]) -> dict[int, str]:
        """Those of the texts that are special tokens, by their ids."""
        return {id: text for id, text in self._special_ids.items() if text in texts}

    def _check_room(self, characters: int, room: int | None) -> None:
        at_least = -(-characters // self._longest)
        if room is not None and at_least > room:
            raise PromptTooLong(at_least)

    def _encode_apart(self, rendered: str, hidden: _Hidden) -> list[int]:
        """Encode where messages contain the characters of special tokens: template and text apart."""
        assert self._specials is not None
        ids: list[int] = []
        position = 0
        for match in self._specials.finditer(rendered):
            ids += self._encode_literal(hidden.reveal(rendered[position : match.start()]))
            token = self._fast.token_to_id(match.group())
            assert token is not None
            ids.append(token)
            position = match.end()
        return ids + self._encode_literal(hidden.reveal(rendered[position:]))

    def _encode_literal(self, text: str) -> list[int]:
        return _encode(self._literal, text, add_special_tokens=False) if text else []


class _Hidden:
    """Special tokens' characters inside what a template is given, replaced by marks while it renders."""

    def __init__(self, specials: re.Pattern[str] | None) -> None:
        self._specials = specials
        # Random, so that no message can contain a mark of its own.
        self._mark = f"\ue000{secrets.token_hex(8)}."
        self._texts: list[str] = []

    @property
    def count(self) -> int:
        return len(self._texts)

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Finds the marks; made when the first is looked for, which most conversations have none of."""
        # A template may write JSON in ASCII, where the mark's own characters are escaped.
        escaped = self._mark.replace("\ue000", r"\ue000")
        return re.compile(rf"{re.escape(self._mark)}([0-9]+)\ue001|{re.escape(escaped)}([0-9]+)\\ue001")

    def conversation(self, chat: Conversation) -> Conversation:
        return replace(
            chat,
            messages=[self.hide(message) for message in chat.messages],
            tools=None if chat.tools is None else [self.hide(tool) for tool in chat.tools],
            documents=None if chat.documents is None else [self.hide(document) for document in chat.documents],
            template_kwargs=self.hide(chat.template_kwargs),
        )

    def hide(self, value: Mapping[str, object]) -> dict[str, object]:
        return {self._hide_text(key): self._hide(item) for key, item in value.items()}

    def reveal(self, text: str) -> str:
        return self._marks.sub(self._revealed, text) if self._texts else text

    def _hide(self, value: object) -> object:
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, list):
            return [self._hide(item) for item in value]
        return self.hide(value) if isinstance(value, dict) else value

    def _hide_text(self, text: str) -> str:
        return self._specials.sub(self._replace, text) if self._specials else text

    def _revealed(self, match: re.Match[str]) -> str:
        plain, escaped = match.groups()
        return self._texts[int(plain)] if plain else json.dumps(self._texts[int(escaped)])[1:-1]

    def _replace(self, match: re.Match[str]) -> str:
        self._texts.append(match.group())
        return f"{self._mark}{len(self._texts) - 1}\ue001"


class Detokenizer:
    """Turns the tokens of one sequence into text as they come, never splitting a character.

    The pieces returned by `push` and `flush` joined are the text of the whole sequence after its prompt.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        shown: Mapping[int, str] | None = None,
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        """`shown` are the special tokens that belong to the text in any case, by their ids."""
        self._tokenizer = tokenizer
        self._shown = shown or {}
        self._skip = skip_special_tokens
        self._ids = list(prompt_ids[-CONTEXT_TOKENS:])
        self._sent = len(self._ids)  # ids[:_sent] are in text already returned, kept as context
        self._sent_text = self._decode(self._ids)

    def push(self, token_id: int) -> str:
        """The text that is complete with this token; empty while a character is still in pieces."""
        if token_id in self._shown:
            piece = self.flush() + self._shown[token_id]
            self._ids, self._sent, self._sent_text = [], 0, ""
            return piece
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if len(text) <= len(self._sent_text):
            if self._tokenizer.says_nothing(token_id):
                self._ids.pop()  # or a thousand of them would be decoded with each one more
            return ""
        if not text.endswith(REPLACEMENT):
            return self._take(text, len(self._ids))
        if len(self._ids) - self._sent < MAX_UNDECODED_TOKENS:
            return ""
        # Bad bytes, then: they go, but for the last ones, which may begin a character that still gets whole.
        for kept in (3, 2, 1):
            head = self._decode(self._ids[:-kept])
            if len(head) > len(self._sent_text) and text.startswith(head):
                return self._take(head, len(self._ids) - kept)
        return ""

    def flush(self) -> str:
        """What is left at the end of the sequence: replacement characters for a character cut short."""
        return self._take(self._decode(self._ids), len(self._ids))

    def _take(self, text: str, count: int) -> str:
        """Return what `text`, decoded from the first `count` ids, has beyond what was sent."""
        piece = text[len(self._sent_text) :]
        del self._ids[: self._sent]
        self._sent = count - self._sent
        self._sent_text = self._decode(self._ids[: self._sent])
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)


def _encode(tokenizer: FastTokenizer, text: str | tuple[str, str], *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text, or of two as one."""
    one, other = (text, None) if isinstance(text, str) else text
    if len(one) + len(other or "") <= LONG_TEXT:
        return list(tokenizer.encode(one, other, add_special_tokens=add_special_tokens).ids)
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def _load(content: bytes, added: Sequence[AddedToken] = ()) -> FastTokenizer:
    """Raises TokensDiffer."""
    tokenizer = FastTokenizer.from_buffer(content)
    for token in added:
        flags = {name: getattr(token, name) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
        tokenizer.add_tokens([FastAddedToken(token.content, **flags)])
        found = tokenizer.token_to_id(token.content)
        if found != token.id:
            raise TokensDiffer(
                f"the added token {token.content!r} has id {token.id}, and beside the base's it would have {found}; "
                "added tokens follow the base's without a gap"
            )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
