"""Before any test imports torch or gradio: one thread, no network, this environment's programs on PATH."""
import os
from pathlib import Path
import pytest

os.environ.setdefault('OMP_NUM_THREADS', '1')

from omni_lite.paths import go_offline, scripts_on_path

go_offline()
scripts_on_path()

ROOT = Path(__file__).resolve().parent.parent

@pytest.fixture(scope='session')
def root() -> Path:
    "Top of the clone."
    return ROOT
