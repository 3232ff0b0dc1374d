"""The packages of the wheel: norton_det, and the folder configs/ as data inside it."""

from setuptools import find_namespace_packages, find_packages, setup

CONFIGS = "norton_det.configs"

setup(
    packages=[
        *find_packages(include=["norton_det*"]),
        CONFIGS,
        *(f"{CONFIGS}.{folder}" for folder in find_namespace_packages("configs")),
    ],
    package_dir={CONFIGS: "configs"},
)
