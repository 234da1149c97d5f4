"""Where things lie, and the few environment variables that keep a run offline and on the cores it was given.

Torch-free on purpose: the command line, the doctor and the test set-up import it before anything heavy."""
import os, sysconfig
from pathlib import Path

__all__ = ['OFFLINE', 'root', 'cache_dir', 'shipped', 'scripts_dir', 'scripts_on_path', 'go_offline', 'notebook_setup']

OFFLINE = dict(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1', HF_HUB_DISABLE_TELEMETRY='1')

def root() -> Path: # folder that holds omni_lite/, apps/ and data_samples/ in a clone
    "The top of the clone (or site-packages, where there is no clone)."
    return Path(__file__).resolve().parent.parent

def cache_dir() -> Path: # OMNI_LITE_CACHE, else the user's cache folder; not created
    "Where fetched packages and built worlds are kept between runs."
    if (home := os.environ.get('OMNI_LITE_CACHE')): return Path(home).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home()/'.cache')/'omni_lite'

def shipped(
    preset:str='nano', # name of the preset
) -> Path: # folder with the checkpoint; it may not exist
    "The checkpoint that ships with the repository, or the one OMNI_LITE_MODEL names."
    if (model := os.environ.get('OMNI_LITE_MODEL')): return Path(model).expanduser()
    return root()/'checkpoints'/preset

def scripts_dir() -> Path: # .venv/bin, or Scripts on Windows
    "The folder of this environment's programs."
    return Path(sysconfig.get_path('scripts'))

def scripts_on_path() -> None:
    "Put this environment's programs first on PATH, so that a linked ffmpeg is found without activating it."
    here, path = str(scripts_dir()), os.environ.get('PATH', '')
    if here not in path.split(os.pathsep): os.environ['PATH'] = here + os.pathsep + path

def go_offline() -> None:
    "Set the variables that stop look-ups on the network; call it before gradio or transformers is imported."
    for k, v in OFFLINE.items(): os.environ.setdefault(k, v)

def notebook_setup(
    cells=None, # the code cells that are about to run (nbdev passes them; not used)
) -> None:
    "What nbdev-test runs once before its workers fork: one thread each, no network, ffmpeg on PATH."
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    go_offline()
    scripts_on_path()
