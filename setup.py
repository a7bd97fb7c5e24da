"""What pyproject.toml cannot say: programs read files beside the package, and an installed one needs them inside."""
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ('train_recipes/**/*.yaml', 'train_recipes/*.json',
           'studies/*.yaml', 'results/paper.csv', 'constraints-tpu-compile.txt')


class BuildWithFiles(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # which leaves all where it is
            for path in (path for pattern in SHIPPED for path in Path().glob(pattern)):
                copy = Path(self.build_lib, 'timm_rs/shipped', path)
                self.mkpath(str(copy.parent))
                self.copy_file(str(path), str(copy))


setup(cmdclass={'build_py': BuildWithFiles})
