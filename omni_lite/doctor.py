"""Says what is wrong with this installation and the cure. `python -m omni_lite.doctor --repair` mends what it can.
`--model FOLDER` examines a model instead: the checks of omni_lite.evaluate.checkup.

It stays torch-free: everything heavy is tried in a child process, so a library that cannot load is a row, not a crash."""
import argparse, importlib.metadata, importlib.util, json, os, platform, re, shutil, subprocess, sys
from dataclasses import asdict, dataclass
from pathlib import Path

from omni_lite import __version__
from omni_lite.fetch import GROUPS, fetched
from omni_lite.paths import scripts_dir, scripts_on_path, shipped

__all__ = ['Check', 'checks', 'model_checks', 'repair', 'report', 'main']

PYTHON = (3, 11)
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')

@dataclass(frozen=True)
class Check:
    "One row of the doctor's list."
    name: str
    ok: bool
    detail: str          # what was found, or what is wrong
    cure: str = ''       # what to type, where it is not ok
    needed: bool = True  # False: only some jobs go without it

# ---- heavy imports, tried in a child

PROBE = '''
import importlib, importlib.util, json
def chain(e):
    seen = []
    while e is not None and len(seen) < 6: seen.append(f'{type(e).__name__}: {e}'); e = e.__cause__ or e.__context__
    return ' <- '.join(seen)
out = {}
for name in ('torch', 'torchaudio', 'torchvision', 'torchcodec'):
    try:
        if importlib.util.find_spec(name) is None: out[name] = dict(state='absent', detail='not installed'); continue
        m = importlib.import_module(name)
        out[name] = dict(state='ok', detail=str(getattr(m, '__version__', '')))
    except BaseException as e: out[name] = dict(state='broken', detail=chain(e))
print('PROBE' + json.dumps(out))
'''

def probe() -> dict: # name -> dict(state 'ok' | 'absent' | 'broken', detail)
    "Import torch and its companions in a child process and say how each one fared."
    done = subprocess.run([sys.executable, '-c', PROBE], capture_output=True, text=True)
    found = [l for l in done.stdout.splitlines() if l.startswith('PROBE')]
    if found: return json.loads(found[-1][5:])
    why = (done.stderr.strip().splitlines() or [f'the interpreter ended with code {done.returncode}'])[-1]
    return {n: dict(state='broken', detail=why) for n in ('torch', 'torchaudio', 'torchvision', 'torchcodec')}

def lacks_cuda(
    detail:str, # the errors of an import, joined
) -> bool: # whether it failed on a library that only a CUDA build of torch brings
    "True where a wheel was linked for CUDA and this machine's torch is not."
    missing = r'lib(c10_cuda|torch_cuda|cuda\w*|cu(dnn|blas|fft|rand|sparse|solver)\w*|nvrtc\w*|nccl)\.so'
    return bool(re.search(missing, detail)) or '__cuda' in detail

# ---- the checks

def _python():
    have = platform.python_version()
    return Check('Python', sys.version_info >= PYTHON, have, f'install Python {PYTHON[0]}.{PYTHON[1]} or newer and run '
                 'make install PYTHON=python3.12')

def _packages():
    try: reqs = importlib.metadata.requires('omni_lite') or []
    except importlib.metadata.PackageNotFoundError:
        return Check('omni_lite', False, 'not installed, only importable from this folder', 'make install')
    missing = []
    for r in (r for r in reqs if 'extra ==' not in r):
        name = re.match(r'[\w.-]+', r)[0]
        try: importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError: missing.append(name)
    return Check('omni_lite', not missing, f'missing: {", ".join(missing)}' if missing else __version__,
                 'pip install -c constraints.txt -e .')

def _short(detail): return detail.replace('\n', ' ')[-160:]

def _torch(found):
    t = found['torch']
    return Check('torch', t['state'] == 'ok', _short(t['detail']), 'pip install -c constraints.txt torch')

def _torchaudio(found):
    t = found['torchaudio']
    cure = 'pip install -c constraints.txt torchaudio' if t['state'] == 'absent' else 'omni-lite doctor --repair'
    if t['state'] == 'broken' and not lacks_cuda(t['detail']):
        cure = 'pip install --force-reinstall --no-deps -c constraints.txt torchaudio, then omni-lite doctor --repair'
    return Check('torchaudio', t['state'] == 'ok', _short(t['detail']), cure)

def _companion(found, name):
    t, why = found[name], 'a broken one makes transformers fail far away'
    detail = {'absent': 'absent, as it should be', 'ok': t['detail'], 'broken': f'{_short(t["detail"])}; {why}'}[t['state']]
    return Check(name, t['state'] != 'broken', detail, f'pip uninstall {name}')

def _ffmpeg():
    at, has = shutil.which('ffmpeg'), importlib.util.find_spec
    cure = 'omni-lite doctor --repair'
    if not has('imageio_ffmpeg'): cure = f'pip install imageio-ffmpeg, then {cure}'
    return Check('ffmpeg', bool(at), at or 'not on PATH; streamed speech in the chat needs it', cure,
                 needed=has('gradio') is not None)

def browser() -> str|None: # path of a Chromium, or None
    "The Chromium that the browser tests drive."
    return next((at for b in BROWSERS if (at := shutil.which(b))), None)

def _browser():
    at = browser()
    return Check('chromium', bool(at), at or 'not found; only the browser tests need it', 'apt-get install chromium', needed=False)

def _fetched(name):
    at = fetched(name)
    return Check(name, at is not None, str(at) if at else f'not fetched; {GROUPS[name].without}', f'omni-lite fetch {name}',
                 needed=False)

def _checkpoint():
    at = shipped()
    there = at.is_dir() and any(at.rglob('*.safetensors'))
    return Check('checkpoint', there, str(at) if there else f'no *.safetensors under {at}; the demo needs one',
                 'omni-lite train --preset nano --budget 15m', needed=False)

def checks() -> list: # of Check, in the order they are shown
    "Look at everything once."
    scripts_on_path()
    found = probe()
    return [_python(), _packages(), _torch(found), _torchaudio(found), _companion(found, 'torchvision'),
            _companion(found, 'torchcodec'), _ffmpeg(), _browser(), _checkpoint(), *map(_fetched, GROUPS)]

def model_checks(
    folder:Path, # of a checkpoint
) -> list: # of Check
    "Examine a model; what could not be looked at is not needed."
    if not (Path(folder)/'config.json').is_file(): raise FileNotFoundError(f'{folder} is not a folder with a checkpoint.')
    from omni_lite.evaluate.checkup import checkup, patient
    found, left = checkup(patient(folder))
    return [*(Check(f.name, f.ok, f.detail, f.cure) for f in found),
            *(Check(n, False, f'not looked at: {why}', 'put it there and ask again', needed=False) for n, why in left.items())]

# ---- mending

def strip_torchaudio(
    home:Path, # the folder of the torchaudio package
) -> list: # names of the files that were deleted
    "Delete torchaudio's compiled libraries; its Python parts (mel, resample, filters) work without them."
    gone = []
    for so in sorted((home/'lib').glob('*.so')): so.unlink(); gone.append(so.name)
    return gone

def link_ffmpeg(
    to:Path, # the folder of programs that gets the link
) -> Path|None: # the link, or None where imageio-ffmpeg is not installed
    "Link the program inside the imageio-ffmpeg wheel as `ffmpeg`."
    if importlib.util.find_spec('imageio_ffmpeg') is None: return None
    import imageio_ffmpeg
    program = Path(imageio_ffmpeg.get_ffmpeg_exe())
    link = to/('ffmpeg.exe' if os.name == 'nt' else 'ffmpeg')
    if link.is_symlink(): link.unlink()
    try: link.symlink_to(program)
    except OSError: shutil.copy2(program, link)
    return link

def repair() -> list: # of lines that say what was done
    "Mend what can be mended without asking: torchaudio's libraries and the ffmpeg link."
    done = []
    scripts_on_path()
    audio = probe()['torchaudio']
    if audio['state'] == 'broken' and lacks_cuda(audio['detail']):
        home = Path(next(iter(importlib.util.find_spec('torchaudio').submodule_search_locations)))
        done.append(f'torchaudio: deleted {", ".join(strip_torchaudio(home))} (linked for CUDA, cannot load here)')
    if not shutil.which('ffmpeg') and (link := link_ffmpeg(scripts_dir())): done.append(f'ffmpeg: linked as {link}')
    return done

# ---- the list as text, and the command

def report(
    rows:list, # of Check
) -> str: # one or two lines each
    "The doctor's list for people."
    wide, out = max(len(r.name) for r in rows), []
    for r in rows:
        out.append(f'{"ok  " if r.ok else "FIX " if r.needed else "--  "} {r.name:<{wide}}  {r.detail}')
        if not r.ok: out.append(f'     {"":<{wide}}  cure: {r.cure}')
    return '\n'.join(out)

def run(
    mend:bool=False, # repair first
    as_json:bool=False, # print JSON instead of text
    model:Path|None=None, # folder of a checkpoint to be examined instead of the installation
) -> int: # exit code: 0 where everything needed is well, else 1
    "Repair if asked, look, print, and say by the exit code whether all is well."
    done = repair() if mend else []
    rows = model_checks(model) if model else checks()
    well = all(r.ok for r in rows if r.needed)
    if as_json: print(json.dumps(dict(ok=well, repaired=done, checks=[asdict(r) for r in rows]), indent=1))
    else:
        for line in done: print(f'mended {line}')
        print(report(rows))
        if model: print('a sound model' if well else 'rows marked FIX name what is wrong with this model')
        else: print('all that is needed is here' if well else 'rows marked FIX stop something that everyone needs')
    return 0 if well else 1

def main(
    argv:list|None=None, # default: the command line
) -> int: # exit code
    "`python -m omni_lite.doctor`, which works before the command omni-lite does."
    p = argparse.ArgumentParser(prog='omni_lite.doctor', description='Say what is wrong with this installation, and the cure.')
    p.add_argument('--repair', action='store_true', help='mend torchaudio and ffmpeg where they can be mended')
    p.add_argument('--json', action='store_true', help='print JSON')
    p.add_argument('--model', type=Path, help='examine the checkpoint in this folder instead')
    a = p.parse_args(argv)
    try: return run(a.repair, a.json, a.model)
    except (ValueError, FileNotFoundError) as e: print(f'omni_lite.doctor: {e}', file=sys.stderr); return 2

if __name__ == '__main__': sys.exit(main())
