"""Package metadata; exact versions are pinned in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES = ("pipeline", "model_surgery", "data_prep", "eval", "slurm", "foundation")

setup(
    name="drope-recalibration",
    version="0.1.0",
    description="Longer context for pretrained models: drop the positional embeddings, recalibrate, evaluate",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[*PACKAGES, *(f"{name}.*" for name in PACKAGES)]),
    include_package_data=True,
    package_data={"pipeline": ["report/templates/*", "demo/model/*"], "model_surgery": ["verification/passage.txt"]},
    install_requires=[
        "torch==2.13.0",
        "deepspeed==0.19.8",
        "megatron-core==0.16.1",
        "transformers==5.23.0",
        "datasets==5.2.0",
        "tokenizers==0.23.3",
        "sentencepiece==0.2.3",
        "protobuf>=7.36",
        "safetensors==0.8.0",
        "lm-eval==0.4.13",
        "wonderwords==3.0.1",
        "accelerate>=1.15",
        "tensorboard==2.21.0",
        "numpy>=2.4,<2.5",
        "scipy>=1.17,<2",
        "zstandard>=0.25",
        "pyarrow>=26",
        "fsspec>=2026.9",
        "huggingface-hub>=2.4,<3",
        "orjson>=3.13",
        "xxhash>=4.1",
        "pydantic>=2.14,<3",
        "pyyaml>=6.0.3",
        "click>=8.5,<9",
        "tqdm>=4.67",
        "psutil>=7.2,<8",
        "ClusterShell>=1.10,<2",
        "matplotlib>=3.11,<4",
        "jinja2>=3.1",
    ],
    extras_require={
        "fast": ["fastokens==0.3.5", "gigatoken==0.10.0", "tokie==0.1.4"],
        "longbench": ["lm-eval[longbench]==0.4.13"],
        "wandb": ["wandb==0.31.0"],
        "gpu": ["transformer-engine[pytorch,core_cu13]==2.20.2"],
        "test": [
            "pytest>=9",
            "pytest-xdist>=3.8",
            "pytest-cov>=7.1",
            "ruff>=0.17",
            "import-linter>=2.16",
            "mypy>=1.18",
            "types-PyYAML",
            "types-psutil",
            "types-tqdm",
        ],
    },
    entry_points={"console_scripts": ["drope=pipeline.cli:main"]},
)
