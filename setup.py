"""Package metadata: what to install, what travels with it, which commands it brings."""

from setuptools import find_packages, setup

DEPENDENCIES = [
    "torch>=2.11",
    # 0.19.8 skips a step with a NaN or infinite gradient norm in every precision; a test holds it to that.
    "deepspeed>=0.19.8,<0.20",
    "transformers>=5.17,<6",
    "sentencepiece",
    "safetensors",
    "tensorboard",
    "mpi4py",
    "cpm_kernels",
    "datasets",
    "typer",
    "rich",
    "numpy",
    "filelock>=4.2",
    "pyyaml",
    "psutil",
    "protobuf",  # SentencePiece models are read and written piece by piece
]
# No rank of a training needs what follows. Near duplicates among examples, and reports about them.
DATA = ["rensa", "jinja2"]
# Scores of generated answers: words, ROUGE, BLEU.
EVALUATION = ["jieba", "rouge-chinese", "nltk"]
# An HTTP server with its page.
SERVE = ["fastapi", "uvicorn", "prometheus-client"]
# One model on several GPUs.
DEVICES = ["accelerate"]

setup(
    name="medsft",
    version="0.1.0",
    description="Full-parameter fine-tuning of ChatGLM-6B on medical instructions, with DeepSpeed ZeRO-3.",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    # ds_configs holds JSON files only; it stands beside medsft in the repository and once installed.
    packages=[*find_packages(include=["launcher", "launcher.*", "medsft", "medsft.*"]), "ds_configs"],
    package_data={
        "medsft": ["**/*.yaml", "**/*.jsonl", "**/*.jinja", "**/*.html", "**/*.css"],
        "ds_configs": ["*.json", "*.md"],
    },
    install_requires=[*DEPENDENCIES, *DATA, *EVALUATION],
    extras_require={
        "generate": ["openai"],
        "serve": SERVE,
        "devices": DEVICES,
        "test": ["pytest", "pytest-xdist", "ruff", "openai", *SERVE, *DEVICES],
    },
    entry_points={
        "console_scripts": [
            "medsft = medsft.cli:main",
            "medsft-launch = launcher.__main__:main",
        ]
    },
)
