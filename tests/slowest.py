"""The test files that take a core longest, worst first: what is long and comes last has all other workers wait.

Those of 15 s and more, in processor time of the tests and of the processes that they start. The rest comes as it is
collected, which costs little.
"""

SLOWEST = (
    "hostile/test_corpus_http.py",
    "engine/test_parity.py",
    "engine/test_supervisor_faults.py",
    "server/test_api_workers.py",
    "server/test_api_workers_faults.py",
    "loadtest/test_bench_commands.py",
    "hostile/test_corpus.py",
    "bench/test_bench_http.py",
    "loadtest/test_planted_wrong_adapter.py",
    "loadtest/test_chaos_suite.py",
    "engine/test_triton_engine.py",
    "server/test_make_serve.py",
    "server/test_push_soak.py",
    "server/test_life.py",
    "cli/test_commands.py",
    "engine/test_gpu_script.py",
    "engine/test_supervisor.py",
    "engine/test_client.py",
    "server/test_crash.py",
    "server/test_two_servers.py",
    "server/test_soak.py",
    "loadtest/test_peft_peer.py",
    "engine/test_parity_parts.py",
    "engine/test_constraint.py",
    "text/test_tokenizer.py",
    "engine/test_supervisor_end.py",
    "cli/test_keys_commands.py",
    "adapters/test_demo.py",
    "server/test_traces.py",
    "server/test_speculation_served.py",
    "engine/test_kernels_build.py",
    "cli/test_adapters_url_and_data.py",
)
