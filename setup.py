"""The recipes stand at the top of the repository, where people look for them; the wheel carries them inside."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copies recipes/ into the package that is built."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copytree(Path(__file__).parent / "recipes", Path(self.build_lib) / "trivet" / "recipes",
                     dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
