"""Examples as token ids and what of them is learnt, rendered and encoded as a server renders and encodes requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from livery.chat_template import Conversation, InvalidMessages
from livery.text import Tokenizer
from livery.training.examples import Chat, Message, Passage, Preference, Unusable

IGNORED = -100  # the label of a token that isn't learnt
_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "One and two?"},
    {"role": "assistant", "content": "Three."},
    {"role": "user", "content": "And four?"},
    {"role": "assistant", "content": "Seven."},
)


@dataclass(frozen=True, slots=True)
class Learnt:
    """Token ids, and those of them that are learnt: labels[i] is ids[i], or IGNORED."""

    ids: list[int]
    labels: list[int]
    cut: bool = False  # longer than was allowed
    left_out: int = 0  # answers whose place couldn't be told, so that they are read and not learnt


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two answers to it, as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    cut: bool = False


class Encoder:
    """Encodes for one base. `whole` says why only whole chats can be learnt, and is empty where answers alone can.

    A chat's turns are found by rendering it up to each of them: what the template makes of the messages before, and
    of the assistant's beginning, must be how it begins with the answer as well. Where that doesn't hold for a chat of
    plain words, it holds for none, and `whole` is why.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._most = max_length
        self.end_of_text = self._end_of_text()
        self.whole = "" if tokenizer.template is None else self._why_whole()

    @property
    def has_template(self) -> bool:
        return self._tokenizer.template is not None

    def chat(self, chat: Chat, *, all_of_it: bool) -> Learnt:
        """Raises Unusable."""
        conversation = Conversation(chat.messages, chat.tools or None, add_generation_prompt=False)
        ids = self._rendered(conversation)
        if all_of_it or self.whole:
            return self._cut(ids, list(ids))
        labels, left_out = [IGNORED] * len(ids), 0
        last = len(chat.messages) - 1
        for at, message in enumerate(chat.messages):
            if message["role"] != "assistant":
                continue
            try:
                span = self._span(chat, at, ids)
            except Unusable as unusable:  # the template takes the chat, and no part of it that ends here
                if at == last:
                    why = f"where the last answer begins can't be told without what it answers: {unusable}"
                    raise Unusable(why) from unusable
                span = None
            if span is None and at == last:
                raise Unusable(
                    "the chat template writes what stands before the last answer otherwise once it has the answer; "
                    "an answer that begins with spaces or line breaks does that: remove them"
                )
            if span is None:  # templates may drop the reasoning of earlier turns: those can't be learnt as said
                left_out += 1
            else:
                labels[span.start : span.stop] = ids[span.start : span.stop]
        return self._cut(ids, labels, left_out)

    def pair(self, preference: Preference) -> Pair:
        """Raises Unusable."""
        if self._tokenizer.template is None:
            prompt, chosen, rejected = self._plain(preference)
        else:
            before = _as_messages(preference.prompt)
            prompt = self._rendered(Conversation(before))
            chosen, rejected = (
                self._behind(prompt, (*before, _as_answer(answer)))
                for answer in (preference.chosen, preference.rejected)
            )
        if len(prompt) >= self._most:
            raise Unusable(self._too_long(len(prompt)))
        room = self._most - len(prompt)
        if chosen[:room] == rejected[:room]:
            raise Unusable(f"both answers are the same in the first {self._most} tokens; raise max_length")
        return Pair(prompt, chosen[:room], rejected[:room], max(len(chosen), len(rejected)) > room)

    def passages(self, passages: Sequence[Passage]) -> Iterator[Learnt]:
        """All of them in their order, in pieces of the full length but for the last.

        Before each stands what the model expects before any text (BOS, where it has one), behind it an end of text.
        """
        ids: list[int] = []
        begins = self._tokenizer.beginning()
        for passage in passages:
            ids += [*begins, *self._tokenizer.encode_plain(passage.text)]
            if self.end_of_text is not None:
                ids.append(self.end_of_text)
        bounds = [*range(0, len(ids), self._most), len(ids)]
        for begin, end in pairwise(bounds):
            if end - begin > 1:  # one token predicts nothing
                yield Learnt(ids[begin:end], ids[begin:end])

    # -- inside ----------------------------------------------------------------------------------------------

    def _span(self, chat: Chat, at: int, ids: Sequence[int]) -> range | None:
        """Where an answer stands in the ids of the whole chat, with its end token; None where that can't be told.

        Raises Unusable where the template refuses the messages before it: many take no chat without any.
        """
        tools = chat.tools or None
        before = self._rendered(Conversation(chat.messages[:at], tools))
        after = self._rendered(Conversation(chat.messages[: at + 1], tools, add_generation_prompt=False))
        if len(after) <= len(before) or ids[: len(before)] != before or ids[: len(after)] != after:
            return None
        return range(len(before), len(before) + self._answer_length(after[len(before) :]))

    def _behind(self, prompt: Sequence[int], messages: Sequence[Message]) -> list[int]:
        """The ids of the last message behind its prompt. Raises Unusable."""
        ids = self._rendered(Conversation(messages, add_generation_prompt=False))
        if ids[: len(prompt)] != prompt or len(ids) == len(prompt):
            raise Unusable(
                "the chat template doesn't write a prompt as the beginning of its answer; an answer that begins with "
                "spaces or line breaks does that: remove them"
            )
        return ids[len(prompt) : len(prompt) + self._answer_length(ids[len(prompt) :])]

    def _answer_length(self, ids: Sequence[int]) -> int:
        """Without what the template writes behind the end of a turn, which no model is ever asked for."""
        ends = [at for at, token in enumerate(ids, 1) if self._tokenizer.says_nothing(token)]
        if not ends or self._tokenizer.decode_all(ids[ends[-1] :]).strip():
            return len(ids)
        return ends[-1]

    def _plain(self, preference: Preference) -> tuple[list[int], list[int], list[int]]:
        """Of a base without chat template. Raises Unusable."""
        texts = (preference.prompt, preference.chosen, preference.rejected)
        if not all(isinstance(text, str) for text in texts):
            raise Unusable("the base has no chat template: give prompt, chosen and rejected as text")
        prompt, *answers = (str(text) for text in texts)
        end = [] if self.end_of_text is None else [self.end_of_text]
        chosen, rejected = ([*self._tokenizer.encode_plain(answer), *end] for answer in answers)
        return self._tokenizer.encode(prompt), chosen, rejected

    def _rendered(self, conversation: Conversation) -> list[int]:
        try:
            return self._tokenizer.encode_chat(conversation)
        except InvalidMessages as invalid:
            raise Unusable(str(invalid)) from invalid

    def _cut(self, ids: list[int], labels: list[int], left_out: int = 0) -> Learnt:
        """Raises Unusable where nothing that is learnt is left."""
        kept = Learnt(ids[: self._most], labels[: self._most], len(ids) > self._most, left_out)
        if all(label == IGNORED for label in kept.labels[1:]):  # the first token is never predicted
            raise Unusable(self._too_long(next((at for at, one in enumerate(labels) if one != IGNORED), len(ids))))
        return kept

    def _too_long(self, tokens: int) -> str:
        return f"what stands before the answer takes {tokens} tokens, and max_length is {self._most}; raise it"

    def _end_of_text(self) -> int | None:
        name = self._tokenizer.facts.named_tokens.get("eos_token")
        found = self._tokenizer.special_tokens([name]) if name else {}
        return next(iter(found), None)

    def _why_whole(self) -> str:
        """Empty where answers can be told from the rest."""
        self.whole = ""
        try:
            self.chat(Chat(_PROBE), all_of_it=False)
        except Unusable:
            return (
                "the base's chat template doesn't show where an answer begins: it writes what stands before it "
                "otherwise "
                "once the answer is there, so everything is learnt, questions too"
            )
        return ""


def _as_messages(prompt: tuple[Message, ...] | str) -> tuple[Message, ...]:
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def _as_answer(answer: Message | str) -> Message:
    return {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
