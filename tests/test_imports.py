"""What importing costs, and who may import whom (the table in CONTRIBUTING.md)."""
import ast, subprocess, sys
from functools import lru_cache
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
PKG = ROOT/'omni_lite'
HEAVY = ('torch', 'torchaudio', 'gradio', 'transformers', 'accelerate', 'numpy', 'matplotlib')
ROWS = [('paths', 'fetch'), ('config',), ('layers',), ('audio', 'vision', 'text'), ('omni',), ('data',), ('train',),
        ('evaluate',), ('serve', 'cli', 'codec_cli', 'eval_cli', 'doctor', 'bench', 'benches', 'plan', 'readme')]
ROW = {name: i for i, row in enumerate(ROWS) for name in row}
STRANGERS = ('audio', 'vision', 'text')  # senses that may not know each other
MODULES = sorted(p for p in PKG.rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))

def _name(path): return '.'.join(path.relative_to(ROOT).with_suffix('').parts)

def _top(module):
    "First name under omni_lite: 'omni_lite.audio.mel' -> 'audio'."
    return module.split('.')[1] if '.' in module else ''

def _targets(path, module, tree=None):
    "Full names of what a module imports from omni_lite, wherever the import stands."
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names if a.name.split('.')[0] == 'omni_lite')
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level: base = '.'.join(module.split('.')[:-node.level] + ([base] if base else []))
            if base.split('.')[0] != 'omni_lite': continue
            for a in node.names:
                full = base.split('.') + [a.name]
                is_module = ROOT.joinpath(*full).is_dir() or ROOT.joinpath(*full).with_suffix('.py').is_file()
                yield '.'.join(full) if is_module else base

def _faults(path, module):
    me = _top(module)
    for target in sorted(set(_targets(path, module))):
        it = _top(target)
        if it == '' or it == me: continue
        if it not in ROW: yield f'{module} imports {target}, which has no row in the table'
        elif ROW[it] > ROW[me]: yield f'{module} (row {ROW[me]}) imports {target} (row {ROW[it]})'
        elif me in STRANGERS and it in STRANGERS: yield f'{module} imports {target}: the senses do not know each other'

@pytest.mark.parametrize('module', ['omni_lite', 'omni_lite.cli', 'omni_lite.doctor', 'omni_lite.fetch', 'omni_lite.bench',
                                    'omni_lite.paths'])
def test_import_is_light(module):
    code = f'import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'

def test_apps_libraries_stay_out_of_the_library():
    "A library install has no gradio: no module may need it merely to be imported."
    loud = []
    for p in MODULES:
        for node in ast.parse(p.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                    [node.module or ''] if isinstance(node, ast.ImportFrom) and not node.level else []
            loud += [f'{_name(p)}: {n}' for n in names
                     if n.split('.')[0] in ('gradio', 'nbdev', 'jupyterlab', 'faster_whisper', 'jiwer', 'onnxruntime', 'onnx')]
    assert not loud

@pytest.mark.parametrize('path', MODULES, ids=_name)
def test_direction(path):
    module = _name(path)
    assert _top(module) in ROW, f'{module} has no row: add it to the table here and in CONTRIBUTING.md'
    assert not (faults := list(_faults(path, module))), faults

def test_no_circle():
    graph = {_name(p): {t for t in _targets(p, _name(p)) if t != _name(p)} for p in MODULES}
    done, path = set(), []
    def visit(m):
        assert m not in path, ' -> '.join(path[path.index(m):] + [m])
        if m in done or m not in graph: return
        path.append(m)
        for t in sorted(graph[m]): visit(t)
        path.pop(); done.add(m)
    for m in graph: visit(m)

def test_the_check_sees_faults(tmp_path):
    "The rule itself is tried on a module that breaks it in three ways."
    bad = tmp_path/'mel.py'
    bad.write_text('from ..omni.model import x\nfrom ..vision import image\ndef f():\n    import omni_lite.cli\nfrom .rvq import y\n')
    assert len(list(_faults(bad, 'omni_lite.audio.mel'))) == 3

def test_contributing_has_the_same_table():
    lines = [l for l in (ROOT/'CONTRIBUTING.md').read_text().splitlines() if l.startswith('| ') and l.split('|')[1].strip().isdigit()]
    for i, row in enumerate(ROWS):
        cells = [c for c in lines[i].split('|')]
        assert int(cells[1]) == i and all(f'`{n}`' in cells[2] for n in row), lines[i]
