# Entry points for people. Each sets up .venv on first use; the work is in scripts/.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help serve test wheel formula soak fuzz mutants clients lint check bench kv-quality kv-memory pocket open-webui dashboard clean

# A variable counts only where it is written on the command line: a HOST or PORT in the environment is somebody else's.
given = $(filter command,$(origin $(1)))
flag = $(if $(call given,$(1)),$(2) '$($(1))')

help:
	@echo "make serve                            serve the model that comes with Pippin on http://127.0.0.1:8080"
	@echo "make serve MODEL=<folder or hub id>   serve another one"
	@echo "make serve BACKEND=mock               serve made-up text; no model, no MLX needed"
	@echo "           HOST= PORT= CONFIG=<file> LOG_LEVEL= ARGS='--any-flag value'; see: pippin serve --help"
	@echo "make test  [ARGS=...]                 the test suite; ARGS goes to pytest"
	@echo "make wheel [ARGS=...]                 build the wheel, install it elsewhere, and use it there; --borrow is quick"
	@echo "make formula                          write a Homebrew formula for this source into build/homebrew"
	@echo "make soak                             the long proofs, minutes; Linux"
	@echo "make mutants [ARGS=...]               plant faults, one at a time, and see that tests notice; half an hour"
	@echo "make fuzz  [ARGS=...]                 requests made up from the published schema, in .venv-fuzz"
	@echo "make clients [ARGS=...]               agents, SDKs, tools and a router of other people against Pippin"
	@echo "make lint                             ruff: rules and format"
	@echo "make check                            mypy and lint"
	@echo "make bench [ARGS=...]                 measure"
	@echo "make kv-quality [ARGS=...]            what a quantized KV cache costs, into docs/kv-cache.md"
	@echo "make kv-memory [ARGS=...]             peak memory of a long prefill, ours and mlx-lm's"
	@echo "make pocket [ARGS=...]                train, evaluate and package the model that comes with Pippin; hours"
	@echo "make open-webui [ARGS=...]            drive the real Open WebUI against Pippin in a browser; Linux, Chromium"
	@echo "make dashboard [ARGS=...]             look at the dashboard in a browser, idle and under load; Linux, Chromium"
	@echo "make clean                            remove .venv and everything else that is made"

serve:
	@scripts/install
	@exec .venv/bin/pippin serve $(if $(call given,MODEL),'$(MODEL)') $(call flag,BACKEND,--backend) \
	    $(call flag,HOST,--host) $(call flag,PORT,--port) $(call flag,CONFIG,--config) \
	    $(call flag,LOG_LEVEL,--log-level) $(ARGS)

test:
	@scripts/test $(ARGS)

wheel:
	@scripts/wheel/run $(ARGS)

formula:
	@scripts/formula/run $(ARGS)

soak:
	@scripts/test -m soak -n 0 -s $(ARGS)

mutants:
	@scripts/install
	@.venv/bin/python -m tests.mutants.run $(ARGS)

fuzz:
	@scripts/fuzz $(ARGS)

clients:
	@scripts/clients $(ARGS)

lint:
	@scripts/lint

check:
	@scripts/check

bench:
	@if [ ! -x scripts/bench ]; then echo "make bench: scripts/bench is missing" >&2; exit 1; fi
	@scripts/install
	@scripts/bench $(ARGS)

kv-quality:
	@EXTRA=plots scripts/install
	@.venv/bin/python -m scripts.kv_quality $(ARGS)

kv-memory:
	@scripts/install
	@.venv/bin/python -m bench.kv_memory $(ARGS)

pocket:
	@scripts/pocket/make $(ARGS)

open-webui:
	@scripts/open_webui/run $(ARGS)

dashboard:
	@scripts/dashboard_shots/run $(ARGS)

clean:
	rm -rf .venv .venv-dashboard .venv-open-webui .venv-clients .venv-aider .venv-router .venv-fuzz build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
