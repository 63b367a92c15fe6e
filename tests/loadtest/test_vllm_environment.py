"""What is installed and started for the peer; nothing is downloaded here."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from livery_loadtest.machine import has_amx
from livery_loadtest.peers import EnvironmentFailed, telling_lines, vllm
from livery_loadtest.peers.launching import LIVERY, VLLM, VLLM_PLAIN, PeersSetup, launch_specs, model_directory
from livery_loadtest.peers.vllm import LEFT_OUT, VllmEnvironment, vllm_command, vllm_variables, wanted_requirements
from livery_loadtest.servers import ServerFailed


def test_extras_and_media_packages_are_left_out_and_markers_stay() -> None:
    declared = [
        "numpy",
        'torch==2.13.0+cpu; platform_machine == "x86_64"',
        'torchaudio; platform_machine != "s390x"',
        "torchvision",
        "torchcodec>=0.14",
        'pandas; extra == "bench"',
        "torch_extra>=1",
    ]
    assert wanted_requirements(declared) == [declared[0], declared[1], declared[6]]
    assert {"torchaudio", "torchvision", "torchcodec"} == LEFT_OUT


def test_only_a_finished_build_of_this_version_counts(tmp_path: Path) -> None:
    environment = VllmEnvironment(tmp_path, "1.2.3")
    assert not environment.ready()
    (tmp_path / ".complete").write_text("1.2.2")
    assert not environment.ready()
    (tmp_path / ".complete").write_text("1.2.3")
    environment.ensure(Console(file=StringIO()))  # would build otherwise, and needs the network for it


def test_a_failing_step_says_what_pip_said() -> None:
    script = "import sys; print('Collecting a'); print('noise'); sys.exit('no matching torch')"
    lines = []
    with pytest.raises(EnvironmentFailed, match="no matching torch") as caught:
        for line in telling_lines([sys.executable, "-c", script]):
            lines.append(line)
    assert lines == ["Collecting a"]
    assert "PIP_EXTRA_INDEX_URL" in str(caught.value)


def test_the_peer_gets_its_best_settings() -> None:
    adapters = {"a": Path("/x/a"), "b": Path("/x/b")}
    command = vllm_command(Path("py"), Path("/m"), "name", 81, adapters, 16, 12)
    text = " ".join(command)
    assert "--max-loras 2 --max-lora-rank 16 --max-cpu-loras 4" in text
    assert "--lora-target-modules q_proj k_proj v_proj o_proj gate_proj up_proj down_proj" in text
    assert "--lora-modules a=/x/a b=/x/b" in text
    assert "--max-num-seqs 12" in text
    assert "lora" not in " ".join(vllm_command(Path("py"), Path("/m"), "name", 81, {}, 16, 12))


def test_it_computes_as_is_fastest_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with").write_text("flags\t: fpu amx_tile amx_bf16\n")
    (tmp_path / "without").write_text("flags\t: fpu avx512f\n")
    found = {name: has_amx(tmp_path / name) for name in ("with", "without", "missing")}
    assert found == {"with": True, "without": False, "missing": False}
    monkeypatch.setattr(vllm, "usable_cores", lambda: 8)
    for has, suited in ((True, ("bfloat16", "0-7")), (False, ("float32", "auto"))):
        monkeypatch.setattr(vllm, "has_amx", lambda has=has: has)
        assert vllm.suited_to_cpu() == suited


def test_its_openmp_is_loaded_first_where_it_is_installed(tmp_path: Path) -> None:
    assert "libiomp5" not in vllm_variables(tmp_path).get("LD_PRELOAD", "")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libiomp5.so").touch()
    variables = vllm_variables(tmp_path, bind="0-1", kv_gib=3)
    assert variables["LD_PRELOAD"].startswith(str(tmp_path / "lib" / "libiomp5.so"))
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_all_servers_get_one_model_and_the_same_adapters(tmp_path: Path) -> None:
    model, environment = tmp_path / "tiny", tmp_path / "vllm"
    model.mkdir()
    environment.mkdir()
    (environment / ".complete").write_text("1")
    header = {"model.layers.0.self_attn.q_proj.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    setup = PeersSetup(
        str(model),
        tmp_path / "run",
        VllmEnvironment(environment, "1"),
        (LIVERY, VLLM, VLLM_PLAIN),
        variants={"int8": "--w int8"},
        vllm_variants={"bf16": "VLLM_CPU_OMP_THREADS_BIND=0-1 X='a b' --dtype bfloat16"},
        adapters=2,
        livery_arguments="--a 'b c'",
    )
    ours, other, theirs, bf16, plain = launch_specs(setup, Console(file=StringIO()))
    names = [spec.name for spec in (ours, other, theirs, bf16, plain)]
    assert names == ["livery", "livery-int8", "vllm", "vllm-bf16", "vllm-no-lora"]
    assert list(other.command[-2:]) == ["--w", "int8"]
    assert other.expects == ours.expects
    assert list(ours.command[-2:]) == ["--a", "b c"]
    folder = Path(ours.command[list(ours.command).index("--adapters") + 1])
    assert sorted(path.name for path in folder.iterdir()) == ["random-0", "random-1"]
    assert f"random-1={folder / 'random-1'}" in theirs.command
    assert bf16.command[-2:] == ["--dtype", "bfloat16"]
    assert bf16.environment == {**theirs.environment, "VLLM_CPU_OMP_THREADS_BIND": "0-1", "X": "a b"}
    assert "--enable-lora" in bf16.command
    assert bf16.expects == theirs.expects
    assert "--enable-lora" not in plain.command
    assert ours.expects == theirs.expects == {"random-0", "random-1"}
    assert not plain.expects
    assert len({ours.url, theirs.url, bf16.url, plain.url}) == 4


def test_an_unknown_model_is_refused_with_the_reason() -> None:
    with pytest.raises(ServerFailed, match="no-such-model"):
        model_directory("no-such-model")
