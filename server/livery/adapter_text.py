"""What adapters bring of their own for turning conversations into tokens and back: chat templates and added tokens.

    text = AdapterText(tokenizer, vocab_size, workers, allow_templates=True)
    tokenizer = await text.tokenizer(profile)     # the base's own, or with the profile's template and tokens

A tokenizer with added tokens takes a moment to make and holds the whole vocabulary: one is made for all who wait for
the same tokens, in a thread for that alone, and those used last are kept.

Also what an adapter's folder is compared with when it is taken in. Templates are rendered apart (`foreign_templates`);
of tokenizers nothing but added tokens is ever used, which are plain data.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from msgspec import structs

from livery.beside import MAKING
from livery.chat_template import Conversation, InvalidMessages
from livery.foreign_templates import ForeignTemplate, TemplateStopped, TemplateWorkers
from livery.refusals import Draining, GrammarUntried, InvalidParameter
from livery.text import Tokenizer, TokensDiffer
from livery.tools.parsers import unknown_parser
from livery_adapters.beside import BaseText, compare
from livery_adapters.profile import AddedToken, Profile, read_profile
from livery_adapters.refusal import AdapterRefused

KEPT_BYTES = 1 << 30  # of tokenizers beside the base's, and
KEPT_AT_LEAST = 8  # of them however large they are
FILE_TO_MEMORY = 5  # what a tokenizer takes for each byte of its file, as SmolLM2's does (17.6 MB for 3.5)
HELLO = Conversation([{"role": "user", "content": "Hello"}])


class AdapterText:
    """The base's tokenizer, and those that adapters make of it. Use from one event loop."""

    def __init__(
        self,
        base: Tokenizer,
        vocab_size: int,
        workers: TemplateWorkers,
        *,
        allow_templates: bool = True,
        try_schema: Callable[[str], Awaitable[None]] | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """`vocab_size` is how many ids the model has rows for. `try_schema` raises InvalidParameter for a JSON schema
        that no answer can be held to; without it the first request finds out. Of tokenizers with added tokens about
        `kept_bytes` are kept, and no fewer than KEPT_AT_LEAST.
        """
        self._try_schema = try_schema
        self.base = base
        self._vocab_size = vocab_size
        self._workers = workers
        self._allow_templates = allow_templates
        self._text = BaseText(base.files.tokenizer, base.files.chat_template, base.files.named_tokens.get("eos_token"))
        self._tokenizers: OrderedDict[tuple[AddedToken, ...], Tokenizer] = OrderedDict()  # the latest used last
        self._made: dict[tuple[AddedToken, ...], asyncio.Task[Tokenizer]] = {}  # at this moment
        self._most = max(KEPT_AT_LEAST, kept_bytes // (FILE_TO_MEMORY * len(base.files.tokenizer)))

    def close(self) -> None:
        self._workers.close()

    async def tokenizer(self, profile: Profile, added_tokens: int = 0, tenant: str = "") -> Tokenizer:
        """What a tenant's requests under a profile are encoded and decoded with. Raises AdapterRefused.

        `added_tokens` are rows that the adapter's weights have beyond the base's.
        """
        if profile.chat_template is not None and not self._allow_templates:
            raise AdapterRefused(
                "template_not_allowed",
                "this server renders no chat templates but the base's; start it without --no-adapter-templates, or "
                "take chat_template out of the profile",
            )
        tokenizer = await self._with_tokens(profile.added_tokens, self._vocab_size + added_tokens, tenant)
        source, named = self._template_of(profile)
        if source is None or (profile.chat_template is None and named == self.base.files.named_tokens):
            return tokenizer
        return tokenizer.with_template(ForeignTemplate(source, named, self._workers, tenant), named)

    def look(self, beside: Mapping[str, bytes]) -> Mapping[str, object]:
        """See livery_adapters.text_side.TextSide."""
        return compare(beside, self._text)

    async def settle(self, profile: Profile, found: Mapping[str, object], added_tokens: int = 0) -> Profile:
        """See livery_adapters.text_side.TextSide. A template is rendered once."""
        if unknown := unknown_parser(profile.tool_parser, profile.reasoning_parser):
            raise AdapterRefused("bad_profile", unknown)
        added = _tokens(profile, found)
        settled = structs.replace(
            profile,
            chat_template=_template(profile, found),
            tokenizer="base",
            added_tokens=added,
            eos_token=self._eos_token(profile, found, added),
        )
        await self._try(settled, added_tokens)
        await self._try_format(settled)
        return settled

    def _template_of(self, profile: Profile) -> tuple[str | None, Mapping[str, str]]:
        """The chat template of a profile and the names of special tokens in it: the base's but for what ends a text."""
        named = self.base.files.named_tokens
        if profile.eos_token is not None:
            named = {**named, "eos_token": profile.eos_token}
        return profile.chat_template or self.base.files.chat_template, named

    def _eos_token(self, profile: Profile, found: Mapping[str, object], added: tuple[AddedToken, ...]) -> str | None:
        """The special token that ends answers beside the base's, None where there is none. Raises AdapterRefused."""
        own = profile.eos_token or (found.get("eos_token") if profile.tokenizer == "adapter" else None)
        if not isinstance(own, str):
            return None
        special = {token.content for token in added if token.special}
        if own in special or self.base.special_tokens([own]):
            return own
        if profile.eos_token is None:
            return None
        raise AdapterRefused(
            "bad_profile",
            f"eos_token is {own!r}, which is no special token of its tokenizer; name one, or put the text under stop",
        )

    async def _try_format(self, profile: Profile) -> None:
        """Raises AdapterRefused: format_untried where there is no time to find out."""
        if self._try_schema is None or profile.schema is None:
            return
        try:
            await self._try_schema(profile.schema)
        except InvalidParameter as invalid:
            raise AdapterRefused("bad_profile", f"response_format: {invalid}") from None
        except (GrammarUntried, Draining) as untried:
            raise AdapterRefused("format_untried", f"response_format: {untried}") from None

    async def _try(self, profile: Profile, added_tokens: int) -> None:
        """Raises AdapterRefused."""
        await self.tokenizer(profile, added_tokens)
        if profile.chat_template is None:
            return
        template = ForeignTemplate(profile.chat_template, self._template_of(profile)[1], self._workers)
        try:
            await template.apart(lambda: template.render(HELLO))
        except TemplateStopped as stopped:
            raise AdapterRefused("bad_template", str(stopped)) from None
        except InvalidMessages:
            return  # it wants other messages than these

    async def _with_tokens(self, added: tuple[AddedToken, ...], rows: int, tenant: str) -> Tokenizer:
        if not added:
            return self.base
        beyond = next((token for token in added if token.id >= rows), None)
        if beyond is not None:
            raise AdapterRefused(
                "resized_vocabulary",
                f"the added token {beyond.content!r} has id {beyond.id}, and base and adapter together have {rows} "
                "rows: save the adapter with its embeddings (save_pretrained(DIR, save_embedding_layers=True)), train "
                "with tokens that the base has spare rows for, or leave tokenizer: adapter out",
            )
        if added in self._tokenizers:
            self._tokenizers.move_to_end(added)
            return self._tokenizers[added]
        if added not in self._made:
            self._made[added] = asyncio.create_task(self._make(added, tenant))
        try:
            return await asyncio.shield(self._made[added])  # who leaves takes it from nobody
        except TokensDiffer as differ:
            raise AdapterRefused("unusable_tokenizer", str(differ)) from None

    async def _make(self, added: tuple[AddedToken, ...], tenant: str) -> Tokenizer:
        """Raises TokensDiffer."""
        try:
            made = await MAKING.run(tenant, partial(self.base.with_tokens, added))
        finally:
            del self._made[added]
        self._tokenizers[added] = made
        if len(self._tokenizers) > self._most:
            self._tokenizers.popitem(last=False)
        return made


def _template(profile: Profile, found: Mapping[str, object]) -> str | None:
    """The template's text; None for the base's. Raises AdapterRefused."""
    if profile.chat_template == "base":
        return None
    if profile.chat_template != "adapter":
        return profile.chat_template
    text = found.get("chat_template")
    if not isinstance(text, str):
        raise AdapterRefused(
            "bad_profile",
            "chat_template is adapter and no template lies beside the weights (chat_template.jinja, or chat_template "
            "in tokenizer_config.json); put it there, or its text into the profile",
        )
    return text or None


def _tokens(profile: Profile, found: Mapping[str, object]) -> tuple[AddedToken, ...]:
    """Raises AdapterRefused."""
    if profile.tokenizer != "adapter":
        return profile.added_tokens
    if found.get("tokenizer"):
        raise AdapterRefused(
            "unusable_tokenizer",
            f"tokenizer is adapter, and the one beside the weights isn't the base's with tokens added: "
            f"{found['tokenizer']}; leave tokenizer out of the profile, or save it from the base's tokenizer",
        )
    if "added_tokens" not in found:
        raise AdapterRefused(
            "bad_profile", "tokenizer is adapter and no tokenizer.json lies beside the weights; put it there"
        )
    return read_profile({"added_tokens": found["added_tokens"]}).added_tokens
