# make demo     the whole road on a real 135M model: starter set → reward model → PPO → report (about 10 minutes)
# make test     all tests
# make check    ruff and mypy
# make figures  the shipped recipes in full, for the figures in docs/ (hours on 2 cores)
# make vllm     vLLM's CPU build in an environment of its own, .venv-vllm: with it, `make test` runs the tests that need it
# make wheel    the wheel, in dist/
# Each makes .venv and installs what it needs. TRIVET_DATA names the folder of shared data sets, where there is one.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= $(or $(TRIVET_DATA),../shared/data)

.PHONY: demo test check figures vllm wheel clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/trivet run quickstart --out runs/demo

test: $(VENV)/.installed
	TRIVET_DATA="$(DATA)" $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

vllm: $(VENV)/.installed
	$(BIN)/python benchmarks/peers.py vllm

check: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

figures: $(VENV)/.installed
	$(BIN)/trivet run quickstart --out runs/figures/demo
	$(BIN)/trivet run harmlessness --set data="$(DATA)" --out runs/figures/harmlessness
	$(BIN)/python benchmarks/resume.py --json benchmarks/results/resume.json
	$(BIN)/python benchmarks/bad_input.py --json benchmarks/results/bad_input.json
	$(BIN)/python benchmarks/labelling.py --json benchmarks/results/labelling.json
	$(BIN)/python benchmarks/endpoint_load.py --json benchmarks/results/endpoint_load.json
	$(BIN)/python benchmarks/labeler_recovery.py --json benchmarks/results/labeler_recovery.json --plot docs/images/labeler_recovery.png
	$(BIN)/trivet evaluate smollm2-135m-instruct --data "$(DATA)" --grader.by smollm2-135m-instruct --out runs/figures/demo/before
	$(BIN)/trivet evaluate runs/figures/demo/ppo/policy --against runs/figures/demo/before --data "$(DATA)" \
	  --judge.by runs/figures/demo/second/reward --grader.by smollm2-135m-instruct --out runs/figures/demo/after
	$(BIN)/trivet ledger runs/figures/demo
	$(BIN)/python benchmarks/evaluation.py --data "$(DATA)" --json benchmarks/results/evaluation.json
	$(BIN)/python benchmarks/reward_training.py --trial --json benchmarks/results/reward_training.json
	$(BIN)/python benchmarks/rollout.py --json benchmarks/results/rollout.json
	$(BIN)/python benchmarks/step_scaling.py --json benchmarks/results/step_scaling.json --plot docs/images/step_scaling.png
	$(BIN)/python benchmarks/ppo_step.py --json benchmarks/results/ppo_step.json --plot docs/images/ppo_step.png
	$(BIN)/python benchmarks/critics.py --json benchmarks/results/critics.json --plot docs/images/critics.png
	$(BIN)/python benchmarks/vllm_curve.py --json benchmarks/results/vllm_curve.json --plot docs/images/vllm_curve.png
	$(BIN)/python benchmarks/overoptimization.py --data "$(DATA)" --json benchmarks/results/overoptimization.json --images docs/images
	$(BIN)/python benchmarks/distillation.py --json benchmarks/results/distillation.json
	$(BIN)/python benchmarks/pruning.py --data "$(DATA)" --json benchmarks/results/pruning.json
	$(BIN)/python benchmarks/recovery.py --json benchmarks/results/recovery.json
	$(BIN)/python benchmarks/router.py --data "$(DATA)" --json benchmarks/results/router.json
	$(BIN)/python benchmarks/serving.py --json benchmarks/results/serving.json
	$(BIN)/python benchmarks/compression.py --model runs/figures/demo --out runs/figures/compress --json benchmarks/results/compression.json

wheel: $(VENV)/.installed
	rm -rf build dist
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist
