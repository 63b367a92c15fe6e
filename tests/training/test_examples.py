"""Lines of data: what can't be used is told with its line and the reason, and the rest is encoded as a server would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from bos import tokenizer_with_bos
from livery.api.chat_messages import ChatMessage, message_of
from livery.api.chat_tools import ToolBody, template_tools
from livery.models import DEMO_MODEL, resolve_model
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerFiles, load_tokenizer_files
from livery.training.dataset import Data, DataInvalid, prepare
from livery.training.examples import Chat, Unusable, read_examples
from livery.training.run_file import parse_run
from livery.training.tokens import IGNORED, Encoder, Learnt, Pair

HI = {"role": "user", "content": "Hi"}
AYE = {"role": "assistant", "content": "Aye."}
LONG = "a " * 60
GOOD: dict[str, dict[str, Any]] = {
    "sft": {"messages": [HI, AYE]},
    "dpo": {"prompt": "Hi", "chosen": "Aye.", "rejected": "Hello!"},
    "cpt": {"text": "The lamp was lit at dusk."},
    "raft": {"question": "Where?", "documents": ["Here.", "There."], "answer": "Here."},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(resolve_model(DEMO_MODEL).path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer_with_bos(tmp_path_factory.mktemp("bos"))


def data_of(kind: str, content: bytes | str, folder: Path, tokenizer: Tokenizer, more: str = "") -> Data:
    (folder / "d.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    run = parse_run(f"kind: {kind}\nbase: b\ndata: d.jsonl\nheld_out: 0\n{more}")
    return prepare(run, folder, tokenizer)


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.mark.parametrize(
    ("kind", "line", "reason"),
    [
        ("sft", "{bad", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("sft", b"\xff{}", "not UTF-8: byte 1 is 0xff"),
        ("sft", "[" * 100_000, "nested too deeply"),
        ("sft", '{"messages": ' + "1" * 5000 + "}", "has a whole number of more digits than can be read"),
        ("sft", '{"messages": ' + "[" * 100 + "]" * 100 + "}", "is nested deeper than 100 levels"),
        ("sft", lines({"messages": [{**HI, "content": "Hi \ud83d"}, AYE]}), "`messages[0].content` contains half of a"),
        ("sft", lines({**GOOD["sft"], "\ude00": 1}), "d.jsonl:2: contains half of a surrogate pair at character 0"),
        ("dpo", lines({**GOOD["dpo"], "chosen": "\ud83d"}), "`chosen` contains half of a surrogate pair"),
        ("cpt", lines({"text": "\ude00"}), "`text` contains half of a surrogate pair"),
        ("raft", lines({**GOOD["raft"], "documents": ["a", "\ud83d"]}), "`documents[1]` contains half of a"),
        ("sft", "[1]", "[1] instead of an object in {}"),
        ("sft", lines({"text": "x"}), "no `messages`; there are text"),
        ("sft", lines({"messages": "x"}), '`messages` is "x" and not a list of messages'),
        ("sft", lines({"messages": [HI]}), "no message of the assistant's"),
        ("sft", lines({"messages": [HI, AYE, HI]}), "the last message is the user's"),
        (
            "sft",
            lines({"messages": [HI, {**AYE, "role": "bot"}]}),
            '`messages[1].role` is "bot"; one of system',
        ),
        ("sft", lines({"messages": [{"role": "user"}, AYE]}), "`messages[0].content` is null and not text"),
        ("sft", lines({"messages": [HI, {**AYE, "content": " "}]}), "`messages[1].content` is empty"),
        ("sft", lines({"messages": [{**HI, "content": [{"type": "image_url"}]}, AYE]}), "only parts that are text"),
        (
            "sft",
            lines({"messages": [HI, {**AYE, "tool_calls": "x"}]}),
            '`messages[1].tool_calls` is "x" and not a list',
        ),
        ("sft", lines({"messages": [{**HI, "name": 3}, AYE]}), "`messages[0].name` is 3 and not text"),
        (
            "sft",
            lines({"messages": [HI, {**AYE, "tool_calls": [{"function": {"arguments": '["\\ud83d"]'}}]}]}),
            "`messages[1].tool_calls[0].function.arguments`, as JSON: `[0]` contains half",
        ),
        ("sft", lines({"messages": [HI, AYE], "tools": 3}), "`tools` is 3 and not a list of objects"),
        ("sft", lines({"messages": [HI, {**AYE, "content": "\n\nAye."}]}), "begins with spaces or line breaks"),
        ("sft", lines({"messages": [{**HI, "content": "x " * 90}, AYE]}), "max_length is 64; raise it"),
        ("dpo", lines({"prompt": "x", "chosen": "a"}), "no `rejected`; there are chosen, prompt"),
        ("dpo", lines({"prompt": "x", "chosen": "a", "rejected": "a"}), "are the same, so nothing is preferred"),
        ("dpo", lines({"prompt": [AYE], "chosen": "a", "rejected": "b"}), "must be the user's, or a tool's"),
        ("dpo", lines({"prompt": "x", "chosen": [HI, AYE], "rejected": "b"}), "`chosen` has 2 messages"),
        ("dpo", lines({"prompt": "x " * 90, "chosen": "a", "rejected": "b"}), "max_length is 64; raise it"),
        (
            "dpo",
            lines({"prompt": "x", "chosen": LONG + "c", "rejected": LONG + "b"}),
            "in the first 64 tokens",
        ),
        ("cpt", lines({"text": 5}), "`text` is 5 and not text"),
        ("raft", lines({"question": "x", "documents": [], "answer": "y"}), "`documents` is [] and not a list of texts"),
        ("raft", lines({"question": "x", "documents": ["a", ""], "answer": "y"}), "`documents[1]` is empty"),
        ("raft", lines({"question": "x", "documents": ["a"]}), "no `answer`; there are documents, question"),
    ],
)
def test_a_broken_line_is_told_and_left_out_if_asked(
    kind: str, line: bytes | str, reason: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    content = lines(GOOD[kind]).encode() + (line if isinstance(line, bytes) else line.encode()).rstrip(b"\n") + b"\n"
    content += lines(GOOD[kind]).encode()
    with pytest.raises(DataInvalid) as raised:
        data_of(kind, content, tmp_path, tokenizer, "max_length: 64")
    assert "1 lines of the data can't be used:\n  d.jsonl:2: " in str(raised.value)
    assert reason in str(raised.value)
    assert "broken_lines: skip" in str(raised.value)
    data = data_of(kind, content, tmp_path, tokenizer, "max_length: 64\nbroken_lines: skip")
    assert [(one.place.line, reason in f"{one}") for one in data.broken] == [(2, True)]
    assert len(data.train) == (1 if kind == "cpt" else 2)


def test_a_whole_pair_is_one_character(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (only,) = data_of("cpt", '{"text": "Aye \\ud83d\\ude00"}', tmp_path, tokenizer).train
    assert isinstance(only, Learnt)
    assert tokenizer.decode(only.ids) == "Aye 😀"


def test_many_broken_lines_are_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataInvalid, match=r"9 lines of the data can't be used:(\n  d\.jsonl:\d: .*){5}\n  and 4 more"):
        data_of("sft", "{}\n" * 9, tmp_path, tokenizer)


def test_text_with_lines_that_are_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "log.txt").write_bytes(b"The lamp was lit.\nA \xff broken line.\nThe wind fell.\n")
    run = parse_run("kind: cpt\nbase: b\ndata: log.txt\nheld_out: 0\nbroken_lines: skip")
    data = prepare(run, tmp_path, tokenizer)
    assert [(one.place.line, one.reason) for one in data.broken] == [(2, "not UTF-8: byte 3 is 0xff")]
    (only,) = data.train
    assert isinstance(only, Learnt)
    assert tokenizer.decode(only.ids) == "The lamp was lit.\n\nThe wind fell.\n"


def test_files_and_what_is_in_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataInvalid, match="No such file or directory; name files that are there"):
        prepare(parse_run("kind: sft\nbase: b\ndata: none.jsonl"), tmp_path, tokenizer)
    with pytest.raises(DataInvalid, match=r"d\.jsonl: 0 examples can be used, and none is left to train on"):
        data_of("sft", "\n\n", tmp_path, tokenizer)
    (tmp_path / "one.jsonl").write_text(lines(GOOD["sft"]))
    with pytest.raises(DataInvalid, match="1 examples can be used, and none is left to train on"):
        prepare(parse_run("kind: sft\nbase: b\ndata: one.jsonl"), tmp_path, tokenizer)
    weighted = {"messages": [HI, {**AYE, "weight": 0}], "source": "me"}
    data = data_of("sft", lines(weighted), tmp_path, tokenizer)
    assert any("fields that are not read: messages[].weight, source" in warning for warning in data.warnings)
    assert any("nothing is held out" in warning for warning in data.warnings)


def test_only_answers_are_learnt_and_to_their_end(tokenizer: Tokenizer) -> None:
    chat = Chat((HI, {**AYE, "content": "Aye <|im_end|> aye."}, {**HI, "content": "And?"}, AYE))
    learnt = Encoder(tokenizer, 512).chat(chat, all_of_it=False)
    spoken = [token for token in learnt.labels if token != IGNORED]
    assert tokenizer.decode_all(spoken) == "Aye <|im_end|> aye.<|im_end|>Aye.<|im_end|>"
    end = tokenizer.encode("<|im_end|>")[0]
    assert spoken.count(end) == 2, "what a user writes is no end of a turn"
    assert all(label in (IGNORED, id) for id, label in zip(learnt.ids, learnt.labels, strict=True))
    whole = Encoder(tokenizer, 512).chat(chat, all_of_it=True)
    assert whole.labels == whole.ids == learnt.ids


def test_what_is_learnt_is_what_transformers_would_render(tokenizer: Tokenizer) -> None:
    judge = AutoTokenizer.from_pretrained(resolve_model(DEMO_MODEL).path)
    messages = [{"role": "system", "content": "Be brief."}, HI, AYE, {**HI, "content": "And?"}, AYE]
    learnt = Encoder(tokenizer, 512).chat(Chat(tuple(messages)), all_of_it=False)
    assert learnt.ids == judge.apply_chat_template(messages, return_dict=False)
    asked = judge.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert learnt.ids[: len(asked)] == asked, "what is learnt begins where the server has the model go on"
    assert learnt.labels[len(asked) - 1] == IGNORED != learnt.labels[len(asked)]


CALL = {"id": "c", "type": "function", "function": {"name": "light", "arguments": '{"lamp": 1}'}}


@pytest.mark.parametrize(
    "message",
    [
        {**HI, "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}], "name": "Ada"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {**AYE, "tool_calls": [{**CALL, "function": {"name": "light", "arguments": "lamp one"}}]},
        {**AYE, "tool_calls": [{**CALL, "function": {"name": "light", "arguments": {"lamp": 2}}}]},
        {"role": "tool", "content": "lit", "tool_call_id": "c"},
        {**AYE, "reasoning_content": "hm", "refusal": None, "name": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ],
)
def test_messages_are_what_the_server_makes_of_them(
    message: dict[str, Any], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    run = parse_run("kind: sft\nbase: b\ndata: d.jsonl")
    (tmp_path / "d.jsonl").write_text(lines({"messages": [HI, message, AYE]}))
    found = read_examples([tmp_path / "d.jsonl"], run)
    ((_, chat),) = found.examples
    assert isinstance(chat, Chat)
    assert chat.messages[1] == message_of(ChatMessage.model_validate(message), 1)
    assert found.unread == set()


def test_tools_are_what_the_server_makes_of_them(tmp_path: Path) -> None:
    run = parse_run("kind: sft\nbase: b\ndata: d.jsonl")
    schema = {"type": "object", "properties": {"lamp": {"type": "integer", "default": None}}}
    function = {"strict": None, "parameters": schema, "x": 1, "name": "light", "description": "Lights a lamp."}
    (tmp_path / "d.jsonl").write_text(lines({**GOOD["sft"], "tools": [{"function": function, "type": "function"}]}))
    ((_, chat),) = read_examples([tmp_path / "d.jsonl"], run).examples
    assert isinstance(chat, Chat)
    judged = template_tools([ToolBody.model_validate({"type": "function", "function": function})])
    assert json.dumps(chat.tools) == json.dumps(judged), "in this order: templates write them down"


def with_template(template: str) -> Tokenizer:
    files = load_tokenizer_files(resolve_model(DEMO_MODEL).path)
    return Tokenizer(TokenizerFiles(files.tokenizer, template, files.named_tokens))


def test_a_template_that_hides_where_an_answer_begins_is_told(tmp_path: Path) -> None:
    told_late = "{% for m in messages %}{{ messages|length }} {{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    data = data_of("sft", lines(GOOD["sft"]), tmp_path, with_template(told_late))
    assert any("everything is learnt, questions too" in warning for warning in data.warnings)
    (only,) = data.train
    assert isinstance(only, Learnt)
    assert only.labels == only.ids


def test_earlier_turns_that_a_template_rewrites_are_not_learnt() -> None:
    """As Qwen's do, which drop the reasoning of all turns but the last."""
    rewrites = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if m.role != 'assistant' or loop.last else m.content.split('#')[-1] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = with_template(rewrites)
    first, last = {**AYE, "content": "hm#Aye."}, {**AYE, "content": "ha#No."}
    learnt = Encoder(tokenizer, 512).chat(Chat((HI, first, HI, last)), all_of_it=False)
    spoken = tokenizer.decode_all([label for label in learnt.labels if label != IGNORED])
    assert spoken == "ha#No.<|im_end|>"
    assert learnt.left_out == 1, "and that is told"


INDEXES = (  # as Qwen's: it looks at the first message without asking whether there is one
    "{% if messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_chat_that_the_assistant_begins_is_learnt_from_its_second_answer_on(tmp_path: Path) -> None:
    tokenizer = with_template(INDEXES)
    begun = {"messages": [{**AYE, "content": "Ahoy."}, HI, AYE]}
    data = data_of("sft", lines(GOOD["sft"], begun), tmp_path, tokenizer)
    plain, learnt = data.train
    assert isinstance(plain, Learnt) and isinstance(learnt, Learnt)
    assert (plain.left_out, learnt.left_out) == (0, 1)
    assert tokenizer.decode_all(learnt.ids).startswith("<|im_start|>assistant\nAhoy.<|im_end|>\n")
    assert tokenizer.decode_all([label for label in learnt.labels if label != IGNORED]) == "Aye.<|im_end|>"
    (warning,) = [one for one in data.told()["warnings"] if "not learnt" in one]
    assert warning.startswith("1 earlier answers, in 1 of 2 chats, are read and not learnt")
    assert not any("not learnt" in one for one in data_of("sft", lines(GOOD["sft"]), tmp_path, tokenizer).warnings)


def test_a_chat_that_is_one_answer_has_nothing_before_it(tmp_path: Path) -> None:
    words = r"d\.jsonl:1: where the last answer begins can't be told without what it answers: .* refuses these"
    with pytest.raises(DataInvalid, match=words):
        data_of("sft", lines({"messages": [AYE]}), tmp_path, with_template(INDEXES))


def test_a_base_without_a_template(tmp_path: Path, tokenizer: Tokenizer) -> None:
    files = load_tokenizer_files(resolve_model(DEMO_MODEL).path)
    bare = Tokenizer(TokenizerFiles(files.tokenizer, None, files.named_tokens))
    with pytest.raises(DataInvalid, match="base b has no chat template, which kind: sft needs"):
        data_of("sft", lines(GOOD["sft"]), tmp_path, bare)
    (pair,) = data_of("dpo", lines(GOOD["dpo"]), tmp_path, bare).train
    assert isinstance(pair, Pair)
    assert bare.decode_all(pair.chosen) == "Aye.<|im_end|>"


def test_pairs_share_their_prompt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (pair,) = data_of("dpo", lines(GOOD["dpo"]), tmp_path, tokenizer).train
    assert isinstance(pair, Pair)
    assert tokenizer.decode_all(pair.prompt).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert [tokenizer.decode_all(answer) for answer in (pair.chosen, pair.rejected)] == [
        "Aye.<|im_end|>",
        "Hello!<|im_end|>",
    ]
    written_out = {"prompt": [HI], "chosen": [AYE], "rejected": [{**AYE, "content": "Hello!"}]}
    assert data_of("dpo", lines(written_out), tmp_path, tokenizer).train == [pair]


def test_documents_begin_as_the_base_expects_texts_to(tmp_path: Path, begun: Tokenizer) -> None:
    texts = [{"text": "The lamp was lit. " * 5}, {"text": "The wind fell."}]
    (piece,) = data_of("cpt", lines(*texts), tmp_path, begun).train
    assert isinstance(piece, Learnt)
    (end,) = begun.special_tokens(["<|im_end|>"])
    expected = [token for text in texts for token in (*begun.encode(text["text"]), end)]
    assert piece.ids == piece.labels == expected
    assert piece.ids.count(begun.beginning()[0]) == len(texts)


def test_documents_follow_each_other_in_pieces(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [{"text": "The lamp was lit. " * 5}, {"text": "The wind fell."}]
    data = data_of("cpt", lines(*texts), tmp_path, tokenizer, "max_length: 8")
    ids = [token for piece in data.train if isinstance(piece, Learnt) for token in piece.ids]
    expected = "".join(f"{text['text']}<|im_end|>" for text in texts)
    assert tokenizer.decode_all(ids) == expected
    assert {len(piece.ids) for piece in data.train[:-1] if isinstance(piece, Learnt)} == {8}


def test_what_is_kept_back_is_drawn_by_the_seed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "d.jsonl").write_text(lines(*({"messages": [{**HI, "content": f"Hi {n}"}, AYE]} for n in range(20))))

    def parted(seed: int) -> Data:
        return prepare(
            parse_run(f"kind: sft\nbase: b\ndata: d.jsonl\nheld_out: 0.2\nseed: {seed}"), tmp_path, tokenizer
        )

    one, same, other = parted(0), parted(0), parted(1)
    assert (len(one.train), len(one.held_out)) == (16, 4)
    assert one == same
    assert one.held_out != other.held_out
    assert not any(item in one.train for item in one.held_out)


def test_what_is_held_out_and_trained_on_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    others = ({"messages": [{**HI, "content": f"Hi {n}"}, AYE]} for n in range(9))
    (tmp_path / "d.jsonl").write_text(lines(*others))
    (tmp_path / "e.jsonl").write_text(lines({"messages": [{**HI, "content": "Hi 4"}, AYE]}, GOOD["sft"]))
    text = "kind: sft\nbase: b\ndata: d.jsonl\n"
    data = prepare(parse_run(f"{text}held_out_data: e.jsonl"), tmp_path, tokenizer)
    (warning,) = data.warnings
    assert warning.startswith("1 of 2 examples that are held out are trained on as well")
    assert prepare(parse_run(f"{text}held_out: 0.5"), tmp_path, tokenizer).warnings == []


def test_another_template_makes_other_examples_of_the_same_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first, again, other = (
        data_of("sft", lines(GOOD["sft"]), tmp_path, one)
        for one in (
            tokenizer,
            with_template(str(tokenizer.template and tokenizer.template.source)),
            with_template(INDEXES),
        )
    )
    assert first.sha256 == again.sha256 == other.sha256
    assert first.encoded == again.encoded != other.encoded


def test_too_long_examples_are_cut_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = data_of(
        "sft", lines({"messages": [HI, {**AYE, "content": "aye " * 90}]}), tmp_path, tokenizer, "max_length: 64"
    )
    (only,) = data.train
    assert isinstance(only, Learnt)
    assert len(only.ids) == 64
    assert any(
        "1 of 1 examples are longer than max_length 64: their ends are cut" in warning for warning in data.warnings
    )


def test_a_conversation_that_the_template_refuses(tokenizer: Tokenizer) -> None:
    strict = with_template("{{ raise_exception('no system') if messages[0].role == 'system' }}" + "x")
    with pytest.raises(Unusable, match="no system"):
        Encoder(strict, 64).chat(Chat(({"role": "system", "content": "Be."}, HI, AYE)), all_of_it=True)
