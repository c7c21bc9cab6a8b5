# `make bench` sets up everything and measures; `make test` sets up everything and tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench bench-light bench-text bench-zoo bench-all bench-accuracy conformance fuzz faults soak stress gate regress prove test test-slow test-mindspore test-torch check sample clean

bench: $(READY)
	$(BIN)/pytest bench -q --benchmark-json=results/latest.json
	$(BIN)/wasmgraph report results/latest.json -o reports --conformance results/conformance.json

# Other architectures, against onnxruntime and onnxruntime-web: about three minutes.
LIGHT := light_squeezenet,light_densenet121,light_shufflenet,light_inception_v2
bench-light: $(READY)
	$(BIN)/pytest bench -q -k "latency or accuracy" --models $(LIGHT) \
		--backends wasm32-simd128@wasmtime,ort-web,onnxruntime --benchmark-json=results/light.json
	$(BIN)/wasmgraph report results/light.json -o reports/light

# A network of text over lengths and batches, one module against one for each length, onnxruntime and
# onnxruntime-web; and the parts of such networks; and ResNet-50 with its batch open: half an hour.
PARTS := byte_classifier,romanizer_encoder,ddddocr,lstm_16,lstm_64,lstm_512,gru_16,gru_64,gru_512,matrix_vector,attention_32,attention_64
OPEN := wasm32-simd128@wasmtime,wasm32-simd128@wasmtime+closed,ort-web,onnxruntime
bench-text: $(READY)
	$(BIN)/pytest bench -q -k "latency or profile or compile or change or accuracy and simd128" --models minilm \
		--dim batch=1,8 --dim sequence=8,32,128,512 --backends $(OPEN) --rounds 8 --benchmark-json=results/open.json
	$(BIN)/pytest bench -q -k "latency" --models resnet50 --shape input=batch,3,224,224 --dim batch=1,8 \
		--backends $(OPEN) --rounds 8 --benchmark-json=results/batch.json
	$(BIN)/pytest bench -q -k "latency or profile or compile or accuracy and simd128" --models $(PARTS) \
		--backends wasm32-simd128@wasmtime,ort-web,onnxruntime --rounds 8 --benchmark-json=results/text.json
	$(BIN)/wasmgraph report results/open.json results/batch.json results/text.json -o reports/text \
		--markdown reports/text/summary.md

# Every network by name, against onnxruntime and onnxruntime-web: about half an hour.
bench-zoo: $(READY)
	$(BIN)/pytest bench -q -k "latency or accuracy" --models all \
		--backends wasm32-simd128@wasmtime,native@native,ort-web,onnxruntime --benchmark-json=results/zoo.json
	$(BIN)/wasmgraph report results/zoo.json -o reports/zoo

# All models, Wasmtime's compilers, one to four threads, four sessions at once: about an hour.
ENGINES := wasm32-simd128@wasmtime-unoptimized,wasm32-simd128@wasmtime-winch
THREADS := wasm32-simd128-threads@wasmtime,wasm32-simd128-threads@node:2,wasm32-simd128-threads@wasmtime:4,ort-web:4,onnxruntime:4
bench-all: $(READY)
	$(BIN)/pytest bench -q --models resnet50,$(LIGHT) --backends default,$(ENGINES),$(THREADS) \
		--sessions 4 --benchmark-json=results/all.json
	$(BIN)/wasmgraph report results/all.json -o reports/all

# Accuracy over 200 varied inputs as well, on every backend: about ten minutes.
bench-accuracy: $(READY)
	$(BIN)/pytest bench -q -k "accuracy" --augment 200 --benchmark-json=results/accuracy.json

# HEAD against BASE, measured call beside call and judged: about ten minutes.
BASE ?= HEAD~1
regress: $(READY)
	$(BIN)/wasmgraph regress $(BASE)

# Tests the verdicts themselves, into results/proof.json: under an hour. An interrupted proof continues; after new
# commits, continue it with REV=… (the commit that it was started on).
REV ?= HEAD
prove: $(READY)
	$(BIN)/python -m trials.prove $(REV)

# All of ONNX's own backend tests on three targets, into results/conformance.json: half an hour. An interrupted
# run continues.
conformance: $(READY)
	$(BIN)/python -m trials.conformance

# Thousands of malformed and generated inputs of each kind, into results/reliability.json: a quarter of an hour.
fuzz: $(READY)
	$(BIN)/python -m trials.fuzz

# Killed processes, full disks, hostile graphs, into results/reliability.json: half an hour.
faults: $(READY)
	$(BIN)/python -m trials.faults

# Millions of inferences, eight sessions at once, and the growth of memory: a quarter of an hour.
soak: $(READY)
	$(BIN)/python -m trials.soak

# Eight threads with a thousand inferences each on one session, on a pool and on clones, in every runtime:
# half a minute.
stress: $(READY)
	$(BIN)/python -m trials.stress

# Sizes, work and accuracy of this tree against results/baseline.json, no time: about three minutes.
GATED := wasm32@wasmtime,wasm32-simd128@wasmtime,wasm32-relaxed-simd@wasmtime,wasm32-simd128-threads@wasmtime:2
gate: $(READY)
	$(BIN)/pytest bench -q -k "work or accuracy" --backends $(GATED) --benchmark-json=results/gate.json
	$(BIN)/wasmgraph compare results/baseline.json results/gate.json --markdown results/gate.md

# Two processes share the tests: each has one processor, as CI has two.
test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not mindspore and not torch"

test-slow: $(READY)
	$(BIN)/pytest -m slow

# A ResNet-50 written in MindSpore, against MindSpore itself: 800 MB of download, in an environment of its own,
# because MindSpore needs an older numpy.
MINDSPORE := .venv-mindspore
test-mindspore: $(MINDSPORE)/.ready
	$(MINDSPORE)/bin/pytest -m mindspore tests/models/test_mindspore.py

# Networks exported by torch.onnx.export, against PyTorch: 200 MB of download for a CPU.
test-torch: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,torch]'
	$(BIN)/pytest -m torch tests/test_pytorch.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Regenerates the sample report, the tables in documents and the screenshots from results/.
sample: $(READY)
	$(BIN)/python -m docs.sample

$(READY): pyproject.toml constraints.txt bench/js/package-lock.json tests/js/package-lock.json
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@if command -v npm >/dev/null; then \
	  for place in bench/js tests/js; do npm ci --prefix $$place --ignore-scripts --no-audit --no-fund --silent; done; \
	else echo "npm is missing: the JavaScript peers and the accessibility check will be skipped"; fi
	touch $@

$(MINDSPORE)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(MINDSPORE)
	grep -vE '^(numpy|ml_dtypes)==' constraints.txt > $(MINDSPORE)/constraints.txt
	$(MINDSPORE)/bin/pip install --quiet --disable-pip-version-check -c $(MINDSPORE)/constraints.txt \
		-e '.[mindspore]' pytest pytest-benchmark hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(MINDSPORE) build dist *.egg-info
