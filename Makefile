# Each target is what a person could type. TORCH is any pip requirement: make demo TORCH=torch==2.9.0
TORCH  ?= torch==2.13.0
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find csrc -type f)

.PHONY: demo test lint bench sanitize sanitize-threads m3fed-tables mfcpl-weights mfcpl-tables 3fm-tables fedmvp-tables \
  gpu-check gpu-build gpu-test-rounds gpu-bench-rounds gpu-memcheck gpu-racecheck dist clean

demo: $(VENV)/.installed
	$(BIN)/mmfl-fast compare local fedavg cross-fedavg m3fed --preset demo --seeds 3

# One process per core; --dist loadfile keeps what a file builds for its tests in one of them.
test: $(VENV)/.installed
	$(BIN)/pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/codespell && $(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

bench: $(VENV)/.installed
	$(BIN)/mmfl-fast bench ops

# The CPU's C++ under GCC's sanitizers, in builds of their own. This is not .venv's Python, whose editable install
# would import its own extension, but it takes the packages from there. ASan looks for libstdc++'s exceptions
# before Python loads it. Reports go past pytest, which loses them with the process.
SANITIZED_BUILD  = $(CURDIR)/build/sanitized/$(LIBRARY)
BUILD_SANITIZED  = $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade \
  --target $(SANITIZED_BUILD) --config-settings=build-dir=$(SANITIZED_BUILD)-objects \
  --config-settings=cmake.build-type=RelWithDebInfo --config-settings=cmake.define.MMFL_CUDA=OFF \
  --config-settings=cmake.define.MMFL_SANITIZE=$(KIND) .
PACKAGES         = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('platlib'))")
SANITIZED_PYTEST = PYTHONSAFEPATH=1 PYTHONPATH=$(SANITIZED_BUILD):$(PACKAGES) \
  LD_PRELOAD="$(shell $(CXX) -print-file-name=lib$(LIBRARY).so) $(shell $(CXX) -print-file-name=libstdc++.so)" \
  $(PYTHON) -m pytest --capture=sys $(foreach other,emulat triton cuda gpu,--ignore-glob='*$(other)*')
TRAINS_NATIVELY := $(addprefix python_tests/federation/test_,native_steps.py client_workers.py)

# Fresh memory is NaN, so that what nobody wrote is seen.
sanitize: export ASAN_OPTIONS := detect_leaks=0:redzone=256:max_malloc_fill_size=1073741824:malloc_fill_byte=255
sanitize: KIND := address,undefined,float-cast-overflow
sanitize: LIBRARY := asan
sanitize: $(VENV)/.installed
	$(BUILD_SANITIZED)
	for level in portable avx2 avx512; do \
	  MMFL_SIMD=$$level $(SANITIZED_PYTEST) python_tests/kernels python_tests/ops $(TRAINS_NATIVELY) || exit 1; \
	done

# On threads of our own: ThreadSanitizer does not understand OpenMP's.
sanitize-threads: export TSAN_OPTIONS := die_after_fork=0:detect_deadlocks=0:halt_on_error=1:suppressions=$(CURDIR)/csrc/threads.supp
sanitize-threads: export OMP_NUM_THREADS := 3
sanitize-threads: KIND := thread
sanitize-threads: LIBRARY := tsan
sanitize-threads: $(VENV)/.installed
	$(BUILD_SANITIZED)
	$(SANITIZED_PYTEST) python_tests/kernels $(TRAINS_NATIVELY) -k 'thread or natively or workers' \
	  --deselect $(lastword $(TRAINS_NATIVELY))::test_the_threads_are_those_of_torchs_own_loops

# Tables 2 and 4 of M3Fed on the federation for two cores. Interrupted, it goes on where it was.
TABLES := runs/m3fed-tables
SEEDS  ?= 3

m3fed-tables: $(VENV)/.installed
	$(BIN)/mmfl-fast compare local fedavg cross-fedavg meta-har mat-fl mcarn fedmsplit m3fed \
	  m3fed,clustering=none m3fed,mixing=none m3fed,projection=false \
	  --preset m3fed-five-cpu --alpha 1,0.4 --seeds $(SEEDS) --out $(TABLES) --resume

# MFCPL, its baselines and its ablation on three data sets; HAPT with fewer rounds than the preset's 200.
# mfcpl-weights is what the weights of the presets were chosen by: validation rows, of whole people on HAPT.
MFCPL_TABLES := runs/mfcpl-tables
MFCPL_HAPT := --preset mfcpl --set rounds=50 --set evaluate_every=25
MFCPL_DIGITS := --preset mfcpl-digits-cpu
MFCPL_WIKIPEDIA := --preset mfcpl-wikipedia-cpu
MFCPL_METHODS := fusion-fedavg fusion-fedavg,absent=zero-fill fedprox moon fedproto fedopt fediot fusion-fedmsplit \
  creamfl mfcpl
MFCPL_ABLATION := mfcpl mfcpl,cmpr=0 mfcpl,cmpc=0 mfcpl,cma=0 mfcpl,cmpr=0,cmpc=0 mfcpl,cmpr=0,cma=0 \
  mfcpl,cmpc=0,cma=0 mfcpl,cmpr=0,cmpc=0,cma=0
MFCPL_RATES := --missing 0.2,0.4,0.6,0.8,0.9 --metric macro_f1 --metric uar --metric accuracy
MFCPL_GRID := --over cmpr=0.01,0.1,1 --over cmpc=0.01,0.1,1 --over cma=0.01,0.1,1 --metric macro_f1
PEOPLE := --set validation.level=client --set data.clients_per_subject=1 --set data.alpha=null \
  --set dirichlet.clients=5 --set dirichlet.alpha=0.1 --set dirichlet.within_clients=true

mfcpl-weights: $(VENV)/.installed
	$(BIN)/mmfl-fast compare mfcpl $(MFCPL_DIGITS) --set validation.share=0.2 $(MFCPL_GRID) --seeds 1 \
	  --out $(MFCPL_TABLES)/weights-digits --resume
	$(BIN)/mmfl-fast compare mfcpl $(MFCPL_WIKIPEDIA) --set validation.share=0.2 $(MFCPL_GRID) --seeds 3 \
	  --out $(MFCPL_TABLES)/weights-wikipedia --resume
	$(BIN)/mmfl-fast compare mfcpl --preset mfcpl --set rounds=40 --set evaluate_every=20 $(PEOPLE) \
	  $(MFCPL_GRID) --seeds 1 --out $(MFCPL_TABLES)/weights-hapt --resume

mfcpl-tables: $(VENV)/.installed
	$(BIN)/mmfl-fast compare $(MFCPL_METHODS) $(MFCPL_HAPT) $(MFCPL_RATES) --seeds $(SEEDS) \
	  --out $(MFCPL_TABLES)/hapt --resume
	$(BIN)/mmfl-fast compare $(MFCPL_METHODS) $(MFCPL_DIGITS) $(MFCPL_RATES) --seeds $(SEEDS) \
	  --out $(MFCPL_TABLES)/digits --resume
	$(BIN)/mmfl-fast compare $(MFCPL_METHODS) $(MFCPL_WIKIPEDIA) $(MFCPL_RATES) --seeds $(SEEDS) \
	  --out $(MFCPL_TABLES)/wikipedia --resume
	$(BIN)/mmfl-fast compare $(MFCPL_ABLATION) $(MFCPL_HAPT) --seeds $(SEEDS) \
	  --out $(MFCPL_TABLES)/ablation-hapt --resume
	$(BIN)/mmfl-fast compare $(MFCPL_ABLATION) $(MFCPL_DIGITS) --seeds $(SEEDS) \
	  --out $(MFCPL_TABLES)/ablation-digits --resume
	$(BIN)/mmfl-fast compare $(MFCPL_ABLATION) $(MFCPL_WIKIPEDIA) --seeds $(SEEDS) \
	  --out $(MFCPL_TABLES)/ablation-wikipedia --resume

# FedMVP and its baselines; alpha 1e6 is IID. A quarter of the paper's width and fewer rounds: see the preset.
FEDMVP_TABLES := runs/fedmvp-tables
FEDMVP_METHODS := joint-fedavg,only=image joint-fedavg,only=text joint-fedavg joint-fedavg,incomplete=keep \
  fedclip creamfl fedmvp fedmvp,server=size
FEDMVP_OPTIONS := --preset fedmvp-wikipedia-cpu --missing 0,0.3,0.5,0.8 --seeds $(SEEDS) \
  --metric pooled_accuracy --metric bytes_up --resume

fedmvp-tables: $(VENV)/.installed
	$(BIN)/mmfl-fast compare $(FEDMVP_METHODS) $(FEDMVP_OPTIONS) --alpha 1e6,0.5,0.1 --out $(FEDMVP_TABLES)/dirichlet
	$(BIN)/mmfl-fast compare $(FEDMVP_METHODS) $(FEDMVP_OPTIONS) --set shards.per_client=2 --out $(FEDMVP_TABLES)/shards

# The 3FM report's scenarios with its controls, reduced to two cores. The report's grid is
# make 3fm-tables GRID=3fm-report CLIENTS=3,5,10 RATES=1e-3,1e-2 SEEDS=5
GRID      ?= 3fm-grid-cpu
CLIENTS   ?= 3
RATES     ?= 1e-3
SCENARIOS := support=image+sign,audio+sign,image+audio,image,audio,sign
CENTRAL   := 3fm,inner_steps=0,query=own,support_every=null,learning_rate=0.01,batch_size=16,local_epochs=25

3fm-tables: $(VENV)/.installed
	$(BIN)/mmfl-fast compare 3fm,inner_rate=1e-5 3fm,inner_rate=1e-4 3fm,inner_rate=1e-3 3fm,inner_rate=1e-2 \
	  3fm,inner_rate=1e-12,order=first 3fm,inner_rate=1e-5,order=first 3fm,inner_rate=1e-3,order=first \
	  3fm,inner_rate=1e-5,order=first,query=own 3fm,inner_steps=0 3fm,inner_steps=0,query=own smil --preset $(GRID) \
	  --over data.clients=$(CLIENTS) --over learning_rate=$(RATES) --over $(SCENARIOS) \
	  --seeds $(SEEDS) --out runs/3fm-tables --resume
	$(BIN)/mmfl-fast compare $(CENTRAL) --preset $(GRID) --set data.clients=1 --set rounds=1 \
	  --over $(SCENARIOS) --seeds $(SEEDS) --out runs/3fm-tables-centralised --resume

# On a machine with a GPU, with its own Python and torch, and without a network. Every stage leaves what it found
# in GPU_OUT as soon as it has it, has its own limit in seconds, and runs alone, too (make gpu-bench-gram); one
# that fails keeps no other from running. The most telling come first.
GPU_OUT    ?= gpu
GPU_STAGES ?= gpu-test-native gpu-bench-gram gpu-bench-prototype_loss gpu-memcheck gpu-test-triton \
  gpu-bench-cross_gram_sq gpu-bench-mix gpu-test-rounds gpu-bench-rounds gpu-racecheck
# Processes of the tests: compiling for Triton takes most of their time, and one that crashes is replaced.
GPU_JOBS   ?= $(shell n=$$(nproc); echo $$((n < 12 ? n : 12)))
# For this chip alone, which takes a third of the time of all: 90a-real where the GPU says 9.0.
GPU_ARCH   ?= $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | \
  sed -e 's/\.//' -e '/^\(9\|1[0-9]\)/s/$$/a/' -e 's/$$/-real/')

GPU_TESTS := -m pytest -m gpu --require-gpu -v -p no:cacheprovider --numprocesses $(GPU_JOBS)
SANITIZER := compute-sanitizer --error-exitcode 9 --target-processes all

gpu-check gpu-%: export PYTHONSAFEPATH := 1
gpu-check gpu-%: export PYTHONUNBUFFERED := 1
gpu-check gpu-%: export PATH := $(PATH):/usr/local/cuda/bin
gpu-check gpu-%: export COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
gpu-%: .SHELLFLAGS := -o pipefail -c
gpu-%: SHELL := bash

gpu-check:
	$(MAKE) --keep-going --jobs 1 $(GPU_STAGES)

# PYTHONSAFEPATH keeps this folder from hiding what is installed here.
gpu-build:
	mkdir -p $(GPU_OUT)
	CUDAARCHS=$(GPU_ARCH) timeout 300 $(PYTHON) -m pip install --verbose --no-build-isolation --no-deps . >$(GPU_OUT)/build.log 2>&1 \
	  || { tail -n 40 $(GPU_OUT)/build.log; exit 1; }

# Other versions than the pinned ones warn of other things, which are no errors here. An interrupt, and not an end,
# because pytest still tells what has failed by then.
gpu-test-%: gpu-build
	timeout --signal INT --kill-after 20 240 $(PYTHON) $(GPU_TESTS) -W default -k $* python_tests/kernels 2>&1 | tee $(GPU_OUT)/test-$*.log

# The engine, which needs pydantic: whole rounds.
gpu-test-rounds: gpu-build
	timeout --signal INT --kill-after 20 120 $(PYTHON) $(GPU_TESTS) -W default python_tests/federation/test_gpu_rounds.py 2>&1 \
	  | tee $(GPU_OUT)/test-rounds.log

gpu-bench-rounds: gpu-build
	timeout 120 $(PYTHON) -m mmfl_fast bench rounds --device cuda --json $(GPU_OUT)/bench-rounds.json 2>&1 | tee $(GPU_OUT)/bench-rounds.log

gpu-bench-%: gpu-build
	timeout 240 $(PYTHON) -m mmfl_fast.benches --device cuda --only $* --seconds 1 --json $(GPU_OUT)/bench-$*.json 2>&1 | tee $(GPU_OUT)/bench-$*.log

# Each tensor an allocation of its own: the end of one inside of a larger block is no end to the sanitizer.
gpu-memcheck: export PYTORCH_NO_CUDA_MEMORY_CACHING = 1

gpu-memcheck gpu-racecheck: gpu-%: gpu-build
	timeout 200 $(SANITIZER) --tool $* $(PYTHON) benches/sanitizer_cases.py 2>&1 | tee $(GPU_OUT)/$*.log

dist: $(VENV)/.installed
	rm -rf dist && $(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist

# torch comes first: with it in place, no other requirement can pull a different build.
STAMP := $(VENV)/.torch-$(subst /,_,$(subst <,_,$(subst >,_,$(subst =,_,$(TORCH)))))

$(STAMP):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	rm -f $(VENV)/.torch-* && touch $@

$(VENV)/.installed: $(STAMP) $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@
