"""A workload file is read whole or refused with the field, its value and what is expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from livery_loadtest.spec import (
    Azure,
    Gamma,
    OfTrace,
    SpecInvalid,
    Trace,
    Workload,
    Zipf,
    parse_workload,
    read_workload,
)

WHOLE = """
name: everything
seed: 7
endpoint: chat
arrivals: {kind: gamma, rate: 3, cv: 4}
duration_s: 60
adapters: 16
base_share: 0.25
popularity: {kind: zipf, exponent: 1.2}
prompt: {kind: azure, trace: code, scale: 0.1, high: 512}
output: {kind: lognormal, median: 40, sigma: 0.5}
shared_prefix: {tokens: 100, share: 0.5, groups: 4}
tenants: [{name: a, key_env: A_KEY}, {name: b, key_env: B_KEY, weight: 3}]
conversations: {turns: {kind: fixed, tokens: 3}, think_s: 2}
cold: {share: 0.1, reserved: 8}
churn: {every_s: 5, adapters: 2, source: /srv/adapters}
hooks: [{at_s: 30, run: "true"}]
structured: {share: 0.2}
disconnects: {share: 0.1}
slo: {ttft_ms: 500}
slopes: [{of: ttft_ms, percent_per_hour: 5}]
"""


def test_a_file_with_everything_is_read() -> None:
    workload = parse_workload(WHOLE)
    assert workload.arrivals == Gamma(rate=3, cv=4)
    assert workload.popularity == Zipf(exponent=1.2)
    assert workload.prompt == Azure(trace="code", scale=0.1, high=512)
    assert [tenant.weight for tenant in workload.tenants] == [1, 3]
    assert workload.hooks[0].timeout_s == 60


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rate: 3", r"unknown field `rate`"),
        ("arrivals: {kind: gama, rate: 3}", r"arrivals.kind is 'gama': .*closed, poisson, gamma, trace, azure"),
        ("arrivals: {kind: poisson, rate: -3}", r"arrivals.rate is -3: .*> 0"),
        ("arrivals: {kind: poisson, rate: .inf}", r"arrivals.rate is inf: .*<= 1000000000"),
        ("arrivals: {kind: poisson, rate: .nan}", r"arrivals.rate is nan: .*> 0"),
        ("arrivals: {kind: poisson, rate: 1e3}", r"arrivals.rate is '1e3': Expected `float`"),
        ("arrivals: {kind: poisson, rate: 3}\nrequests: 0", r"give `requests` or `duration_s`"),
        ("requests: 0", r"closed need `requests`"),
        ("requests: 100000000", r"requests is 100000000: .*<= 2000000"),
        ("base_share: 1.5", r"base_share is 1.5: .*<= 1"),
        ("prompt: {kind: uniform, low: 9, high: 3}", r"prompt: low is 9 and high 3"),
        ("output: {kind: azure, trace: chat}", r"output.trace is 'chat': .*conv, code"),
        ("output: {kind: trace}", r"lengths of kind trace need `arrivals` of kind trace"),
        ("endpoint: chats", r"endpoint is 'chats': .*completions, chat"),
        ("conversations: {turns: {kind: fixed, tokens: 2}}", r"`conversations` need `endpoint: chat`"),
        ("endpoint: chat\nconversations: {turns: {kind: azure}}", r"conversations.turns.kind is 'azure': .*lognormal"),
        ("structured: {share: 0.5}", r"`structured` needs `endpoint: chat`"),
        ("churn: {every_s: 1, adapters: 1, source: /a}", r"`churn` in a closed loop needs `duration_s`"),
        ("duration_s: 60\nhooks: [{at_s: 60, run: x}]", r"at_s 60, when the run is over \(duration_s 60\)"),
        ("popularity: {kind: weights, weights: {a: 0}}", r"popularity: all weights are 0"),
        ("tenants: [{name: a, key_env: A}, {name: a, key_env: B}]", r"a name twice \(a, a\)"),
        ("tenants: [{name: a, key_env: A, weight: 0}]", r"tenants\[0\].weight is 0: .*> 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_expected(line: str, said: str) -> None:
    fields = [field.partition(":")[0] for field in line.splitlines()]
    rest = [field for field in ("name: a", "requests: 10") if field.partition(":")[0] not in fields]
    with pytest.raises(SpecInvalid, match=rf"^here\.yaml: .*{said}"):
        parse_workload("\n".join([*rest, line]), "here.yaml")


@pytest.mark.parametrize("text", ["", "- 1", "[", "{1: 2}", "a\0b", "[" * 5000])
def test_what_is_no_workload_at_all_is_refused(text: str) -> None:
    with pytest.raises(SpecInvalid, match="here"):
        parse_workload(text, "here")


def test_a_field_given_twice_is_refused_where_it_stands() -> None:
    with pytest.raises(SpecInvalid, match=r"(?s)here: rate is given twice; give it once.*line 3"):
        parse_workload("name: a\nrequests: 1\narrivals: {kind: poisson, rate: 3, rate: 4}", "here")


def test_the_example_of_the_readme_is_a_workload() -> None:
    readme = (Path(__file__).parents[2] / "loadtest" / "README.md").read_text()
    example = parse_workload(readme.partition("```yaml\n")[2].partition("```")[0])
    assert example.name == "evening" and example.popularity == Zipf(exponent=1)


def test_a_file_that_cannot_be_read_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SpecInvalid, match=r"nowhere\.yaml: No such file.*runs a suite"):
        read_workload(tmp_path / "nowhere.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecInvalid, match=r"binary: not UTF-8"):
        read_workload(tmp_path / "binary")


def test_a_workload_made_in_python_is_checked_as_well() -> None:
    with pytest.raises(ValueError, match="`requests`"):
        Workload(name="a")
    with pytest.raises(ValueError, match="kind trace"):
        Workload(name="a", requests=1, prompt=OfTrace())
    assert Workload(name="a", requests=1, arrivals=Trace(file="x"), prompt=OfTrace()).requests == 1
