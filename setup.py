"""Install with `make install`, or: pip install -c constraints.txt torch==2.13.0 && pip install -c constraints.txt -e ."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md")

PACKAGES = ("units", "speechgpt", "instruct_data", "stages", "eval")
CORE = [
    "torch==2.13.0",
    "transformers>=5.2,<6",
    "numpy>=1.26",
    "soundfile>=0.12",
    "soxr>=0.5",
    "librosa>=0.10",
    "scikit-learn>=1.4",
    "joblib>=1.3",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "pyarrow>=17",
    "ijson>=3.3",
    "tqdm>=4.66",
    "jsonargparse[signatures]>=4.40",
    "espeakng-loader>=0.2.4",
]
DATA = ["num2words>=0.5.14", "py3langid>=0.3"]
TRAIN = ["accelerate>=1.1", "deepspeed>=0.19.8", "peft>=0.18", "datasets>=3", "tensorboard>=2.18", "matplotlib>=3.8"]
EVAL = ["pocketsphinx>=5.0.3", "jiwer>=4", "matplotlib>=3.8"]
MICROPHONE = ["sounddevice>=0.5"]
FAIRSEQ = ["fairseq==0.12.2"]
DEV = ["pytest>=8", "pytest-randomly>=3.16", "hypothesis>=6.100", "ruff>=0.14", "mypy>=1.15"]

setup(
    name="speechgpt-trainer",
    version="0.1.0",
    description="From a folder of audio to a language model that hears and speaks in discrete units",
    long_description=README.read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=[f"{package}{inner}" for package in PACKAGES for inner in ("", ".*")]),
    package_data={
        "units": ["starter/**/*", "configs/*.yaml"],
        "speechgpt": ["serve/page.html"],
        "instruct_data": ["instructions/**/*.txt", "prompts/*.txt"],
        "stages": ["configs/**/*.yaml", "configs/**/*.json", "slurm.sh"],
    },
    install_requires=CORE,
    extras_require={
        "data": DATA,
        "train": TRAIN + DATA,
        "eval": EVAL,
        "microphone": MICROPHONE,
        "fairseq": FAIRSEQ,
        "dev": DEV,
    },
    entry_points={
        "console_scripts": [
            "units-extract=units.dataset.extract:cli",
            "units-export=units.dataset.export:cli",
            "units-vocode=units.vocoder.vocode:cli",
            "speechgpt-cli=speechgpt.cli:cli",
            "speechgpt-server=speechgpt.serve.server:cli",
        ]
    },
)
