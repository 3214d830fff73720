"""Install with `make install`, or: pip install -c constraints.txt torch==2.13.0; pip install -c constraints.txt -e ."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md")
PACKAGES = ("units", "speechgpt", "instruct_data", "stages", "eval", "variants")

CORE = [
    "torch>=2.9",  # constraints.txt has the version that was run
    "transformers>=5.2,<6",
    "numpy>=1.26",
    "soundfile>=0.12",
    "soxr>=0.5",
    "librosa>=0.10",
    "scikit-learn>=1.4",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "pyarrow>=17",
    "tqdm>=4.66",
    "jsonargparse[signatures]>=4.49",
]
# Texts and TTS voices: numbers as words, languages, large JSON files, language models over HTTP, espeak-ng.
DATA = ["num2words>=0.5.14", "py3langid>=0.3", "ijson>=3.3", "openai>=2", "espeakng-loader>=0.2.4"]
REPORTS = ["jinja2>=3.1", "matplotlib>=3.8"]
TRAIN = ["accelerate>=1.1", "deepspeed>=0.19.8", "peft>=0.18", "datasets>=3", "tensorboard>=2.18"]
EVAL = ["pocketsphinx>=5.0.3", "jiwer>=4", "sacrebleu>=2.4"]
FASTER_WHISPER = ["faster-whisper>=1.1"]  # another library for --asr, beside transformers
SIGNAL = ["speechmos>=0.0.1", "onnxruntime>=1.17"]  # DNSMOS and PLCMOS, with their weights
SERVE = [
    "starlette>=0.45",
    "openai>=2",  # --llm
    "uvicorn>=0.34",
    "websockets>=13,<16",  # the openai client's range
    "python-multipart>=0.0.18",
    "prometheus-client>=0.21",
]
PIPER = ["onnxruntime>=1.17", "espeakng-loader>=0.2.4"]  # runs voices of Piper, which read espeak-ng's phonemes
MICROPHONE = ["sounddevice>=0.5"]
FAIRSEQ = ["fairseq==0.12.2"]
REAL = ["gguf>=0.17"]  # reads the weights of a small real LLM out of a Python package
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.27"]
DEV = [
    "pytest>=8",
    "pytest-randomly>=3.16",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "joblib>=1.3",
    "trl>=1.0; python_version >= '3.11'",  # its losses on pairs of replies, to compare with
    "playwright>=1.45",  # drives Chromium, for the tests of the page
    "ruff>=0.14",
    "mypy>=1.15",
    "pre-commit>=4",
]

COMMANDS = {
    "units-corpus": "units.corpus.corpora",
    "units-align": "units.corpus.align",
    "units-extract": "units.dataset.extract",
    "units-export": "units.dataset.export",
    "units-quality": "units.dataset.quality",
    "units-fit": "units.encoder.fit",
    "units-pretrain": "units.encoder.pretrain",
    "units-adopt-encoder": "units.encoder.adopt",
    "units-vocode": "units.vocoder.vocode",
    "units-train-vocoder": "units.vocoder.train_vocoder",
    "units-adopt-vocoder": "units.vocoder.adopt",
    "instruct-toy": "instruct_data.toy.world",
    "instruct-eval-sets": "instruct_data.toy.eval_sets",
    "instruct-sources": "instruct_data.text.sources",
    "instruct-rewrite": "instruct_data.text.rewrite",
    "instruct-own-chats": "instruct_data.text.own.chats",
    "instruct-own-texts": "instruct_data.text.own.texts",
    "instruct-speak": "instruct_data.speech.speak",
    "instruct-open-corpus": "instruct_data.speech.open_corpus",
    "instruct-speak-units": "instruct_data.speech.unit_voice",
    "instruct-build": "instruct_data.build.sets",
    "instruct-preferences": "instruct_data.preferences.pairs",
    "instruct-describe": "instruct_data.describe.report",
    "instruct-speech-instruct": "instruct_data.released.speech_instruct",
    "instruct-stage1-text": "instruct_data.released.stage1_text",
    "instruct-trl-pairs": "instruct_data.released.trl_pairs",
    "stages-train": "stages.train",
    "stages-text-llm": "stages.start_models.text_llm",
    "stages-real-models": "stages.start_models.real_models",
    "speechgpt-cli": "speechgpt.cli",
    "speechgpt-server": "speechgpt.serve.server",
    "speechgpt-bundle": "speechgpt.bundle",
    "speechgpt-adopt": "speechgpt.published.adopt",
    "eval-run": "eval.run",
    "eval-resynthesis": "eval.resynthesis",
    "eval-report": "eval.report.card",
    "eval-compare": "eval.compare",
    "eval-qa-set": "eval.qa_sets",
    "blsp-train": "variants.blsp.train",
    "blsp-continuation": "variants.blsp.continuation",
    "blsp-text-tasks": "variants.blsp.text_tasks",
    "blsp-hear": "variants.blsp.hear",
    "blsp-label-loss": "variants.blsp.label_loss",
    "blsp-generate": "variants.blsp.generate",
    "blsp-upstream": "variants.blsp.upstream",
    "llama-omni-train": "variants.llama_omni.train",
    "llama-omni-hear": "variants.llama_omni.hear",
    "llama-omni-generate": "variants.llama_omni.generate",
    "llama-omni-latency": "variants.llama_omni.latency",
    "llama-omni-upstream": "variants.llama_omni.upstream",
}

setup(
    name="speechgpt-trainer",
    version="0.2.0",
    description="From a folder of audio to a language model that hears and speaks in discrete units",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=[f"{package}{inside}" for package in PACKAGES for inside in ("", ".*")]),
    package_data={
        "units": ["py.typed", "runtime/page.css", "starter/**/*", "codec/**/*", "configs/*.yaml"],
        "speechgpt": ["py.typed", "serve/page/*"],
        "instruct_data": ["py.typed", "instructions/**/*.txt", "prompts/*.txt", "describe/*.jinja"],
        "stages": ["py.typed", "configs/**/*.yaml", "configs/**/*.json", "slurm.sh"],
        "eval": ["py.typed", "report/*.jinja", "report/*.json", "prompts/*.txt", "kept/*"],
        "variants": ["py.typed", "*/configs/**/*.yaml"],
    },
    install_requires=CORE,
    extras_require={
        "data": DATA + REPORTS,
        "piper": PIPER,
        "train": TRAIN + DATA + REPORTS,
        "eval": EVAL + REPORTS,
        "faster-whisper": FASTER_WHISPER,
        "signal": SIGNAL,
        "serve": SERVE,
        "microphone": MICROPHONE,
        "fairseq": FAIRSEQ,
        "real": REAL,
        "docs": DOCS,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": [f"{command}={module}:main.cli" for command, module in COMMANDS.items()],
        "speechgpt.systems": [
            "speechgpt=speechgpt.inference:SpeechGPT",
            "blsp=variants.blsp.inference:BLSP",
            "llama-omni=variants.llama_omni.inference:LlamaOmni",
        ],
    },
)
