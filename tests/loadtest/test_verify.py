"""Which answers are taken for another adapter's, and which for rounding."""

from __future__ import annotations

from livery_loadtest.record import Record
from livery_loadtest.script import Planned
from livery_loadtest.verify import Finding, Verification, choose, judge, replayed, rivals, suspects

OWN = "Arr, the sea be wide and the wind be fair, matey."
OTHER = '{"answer": "The sea is wide and the wind is fair."}'


def answered(index: int, model: str, text: str, **fields: object) -> Record:
    planned = Planned(index, 0.5 * index, model, f"prompt {index}", 16)
    return Record(planned, 0.0, text=text, **fields)  # type: ignore[arg-type]


def test_the_sample_has_rare_models_and_nothing_that_cannot_be_asked_again() -> None:
    records = [answered(i, "busy", "text") for i in range(50)] + [answered(50, "rare", "text")]
    records += [answered(51, "failed", "", error="http 500"), answered(52, "gone", "te", left=True)]
    later = answered(53, "later", "text")
    later.planned = Planned(53, None, "later", "and then?", 16, follows=1)
    chosen = choose([*records, later], 4, seed=1)
    assert [record.planned.model for record in chosen].count("rare") == 1
    assert {record.planned.model for record in chosen} == {"busy", "rare"}
    assert len(choose(records, 100, seed=1)) == 51
    assert chosen == choose([*records, later], 4, seed=1)


def test_a_replay_asks_the_same_things_without_times_and_departures() -> None:
    chosen = [answered(4, "red", "x"), answered(9, "blue", "y")]
    chosen[0].planned = Planned(4, 2.0, "red", "prompt 4", 16, tenant="acme", leave_after=3)
    (first, second) = replayed([(one, [one.planned.model]) for one in chosen]).requests
    assert (first.model, first.text, first.tenant) == ("red", "prompt 4", "acme")
    assert first.at is first.leave_after is None
    assert (second.index, second.text) == (1, "prompt 9")
    assert [(one.model, one.text) for one in replayed([(chosen[0], ["base", "blue"])]).requests] == [
        ("base", "prompt 4"),
        ("blue", "prompt 4"),
    ]


def test_an_answer_of_another_adapter_is_found_and_named() -> None:
    record, reference = answered(0, "pirate", OTHER), answered(0, "pirate", OWN)
    assert suspects([record], [reference]) == [record]
    found = judge(record, reference, {"json": answered(1, "json", OTHER), "base": answered(2, "base", "The sea")})
    assert (found.finding, found.as_of) == (Finding.WRONG_ADAPTER, "json")
    assert Verification("quiet", 1, (found,)).wrong == (found,)


def test_an_answer_of_another_adapter_that_parts_late_from_it_is_still_its() -> None:
    under_load = answered(0, "pirate", OTHER[:-9] + "green.")
    found = judge(under_load, answered(0, "pirate", OWN), {"json": answered(1, "json", OTHER)})
    assert (found.finding, found.as_of) == (Finding.WRONG_ADAPTER, "json")


def test_an_answer_that_parts_late_from_its_own_is_rounding() -> None:
    under_load = answered(0, "pirate", OWN[:-6] + "lad.")
    found = judge(under_load, answered(0, "pirate", OWN), {"json": answered(1, "json", OTHER)})
    assert (found.finding, found.as_of) == (Finding.PARTED, "pirate")
    assert found.alike == len(OWN) - 6


def test_equal_answers_are_the_same_even_where_another_model_says_so_too() -> None:
    found = judge(answered(0, "a", "Paris"), answered(0, "a", "Paris"), {"b": answered(1, "b", "Paris")})
    assert found.finding is Finding.SAME


def test_without_a_reference_nothing_is_said() -> None:
    found = judge(answered(0, "a", "Paris"), answered(0, "a", "", error="http 503"), {})
    assert found.finding is Finding.UNANSWERED
    assert suspects([answered(0, "a", "Paris")], [answered(0, "a", "", error="http 503")]) == []


def test_an_answer_that_failed_is_no_answer_that_parts() -> None:
    """Not even where the reference failed, too, or where what came before it broke off is as the reference's."""
    broken = answered(0, "a", "Par", error="stream cut", error_message="in the middle")
    for reference in (answered(0, "a", "Paris"), answered(0, "a", "", error="http 503"), answered(0, "a", "Par")):
        found = judge(broken, reference, {"b": answered(1, "b", "Par")})
        assert (found.finding, found.under_load) == (Finding.FAILED, "stream cut: in the middle")
        checked = Verification("quiet", 1, (found,))
        assert checked.failed == (found,) and not checked.wrong


def test_rivals_are_those_answered_at_the_same_time() -> None:
    def during(model: str, sent: float, finished: float) -> Record:
        record = answered(0, model, "x", sent=sent, finished=finished)
        return record

    asked = during("red", 1.0, 2.0)
    others = [during("before", 0.0, 1.0), during("into", 0.5, 1.5), during("within", 1.2, 1.4), during("red", 1.1, 1.2)]
    others += [during("around", 0.0, 3.0), during("after", 2.0, 3.0)]
    assert rivals(asked, others, 9, "base") == ["base", "into", "within", "around"]
    assert rivals(asked, others, 2, "base") == ["base", "into"]
    assert rivals(asked, others, 9, "within") == ["within", "into", "around"], "the base first, and once"
    assert rivals(asked, others, 9, "red") == ["into", "within", "around"], "which isn't asked when it was asked for"


def test_an_answer_of_the_base_in_an_adapters_place_is_found() -> None:
    text = "The sea is wide."
    record, reference = answered(0, "pirate", text), answered(0, "pirate", OWN)
    found = judge(record, reference, {"base": answered(1, "base", text), "json": answered(2, "json", OTHER)})
    assert (found.finding, found.as_of) == (Finding.WRONG_ADAPTER, "base")


def test_the_least_alike_are_looked_into_first_and_others_are_not_called_rounding() -> None:
    texts = ["same", "differs late", "other", "differs early", "no answer"]
    references = ["same", "differs latest", "thing", "diff", ""]
    records = [answered(index, "a", text) for index, text in enumerate(texts)]
    expected = [answered(index, "a", text) for index, text in enumerate(references)]
    expected[4].error = "http 503"
    assert [record.planned.index for record in suspects(records, expected)] == [2, 3, 1]
    assert [judge(*pair, None).finding for pair in zip(records, expected, strict=True)] == [
        *(Finding.SAME, Finding.NOT_LOOKED_INTO, Finding.NOT_LOOKED_INTO, Finding.NOT_LOOKED_INTO, Finding.UNANSWERED)
    ]
