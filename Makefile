# A thin door over CMake and scripts/. ARGS="..." goes to the program: make serve ARGS="--port 9000"
.DEFAULT_GOAL := help
.PHONY: help setup build cuda cuda-all serve chat eval test install format
POCKET_NVFP4 = build/pocket-nvfp4
PREFIX ?= /usr/local
ARGS ?=

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

setup:
	@scripts/setup.sh build

build: setup  ## the program, at build/nibble
	@scripts/build.sh release nibble

cuda:  ## the program with kernels for this machine's GPUs; fetches NVIDIA's compiler where there is none
	@scripts/setup.sh cuda
	@scripts/cuda.sh here

cuda-all:  ## the same for all GPUs from Ampere to Blackwell
	@scripts/setup.sh cuda
	@scripts/cuda.sh all

serve: build $(POCKET_NVFP4)  ## serve the pocket model, quantized to NVFP4, on port 8000
	@build/nibble serve $(POCKET_NVFP4) --served-model-name pocket $(ARGS)

$(POCKET_NVFP4): models/pocket/model.safetensors.index.json | build
	@rm -rf $@
	@echo "Quantizing the pocket model to NVFP4: once, one to three minutes"
	@build/nibble quantize models/pocket $@ $$([ ! -d $@.partial ] || echo --resume) >build/quantize.log || \
	  { rm -rf $@.partial; exit 1; }

chat: build  ## talk to the pocket model in the terminal
	@build/nibble chat $(ARGS)

eval: build  ## score the pocket model on its 29 families of problems
	@build/nibble eval --tasks models/pocket/eval/tasks.jsonl $(ARGS)

test:  ## everything that CI runs
	@scripts/setup.sh test
	@scripts/test.sh $(STEPS)

install: build  ## program and pocket model under PREFIX (/usr/local)
	@cmake --install build --prefix "$(PREFIX)" >build/install.log || { cat build/install.log; exit 1; }
	@echo "Installed $(PREFIX)/bin/nibble and its pocket model in $(PREFIX)/share/nibble"

format:  ## lay out the C++ sources
	@find src tests -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format-14 -i
