"""Puts the scripts, their configs and the shipped models into the package, for `vidtwin`."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SCRIPTS = ("train_*.py", "evaluate*.py", "encode.py", "sample.py", "reconstruct.py", "shards.py")
FOLDERS = ("configs", "checkpoints")


class BuildWithScripts(build_py):
    """build_py that adds what lies beside the packages, as `vidtwin_lab/_root`."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the command then uses the checkout
        target = Path(self.build_lib) / "vidtwin_lab" / "_root"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for pattern in SCRIPTS:
            for script in ROOT.glob(pattern):
                shutil.copy2(script, target)
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, target / folder)


setup(cmdclass={"build_py": BuildWithScripts})
