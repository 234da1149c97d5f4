"""settings.ini mirrors pyproject.toml: nbdev's own migration of the one must give the other."""
import re, shutil, subprocess, tomllib
from pathlib import Path
import pytest

def _migrated(ini, folder):
    shutil.copy(ini, folder/'settings.ini')
    subprocess.run([shutil.which('nbdev-migrate-config')], cwd=folder, check=True, capture_output=True)
    return tomllib.loads((folder/'pyproject.toml').read_text())

def _facts(toml):
    "What both files state, with empty values and what the migration invents dropped."
    p = dict(toml['project'])
    p['authors'] = [{k: v for k, v in a.items() if v} for a in p.get('authors', [])]
    p['urls'] = {k: v for k, v in p.get('urls', {}).items() if v and k != 'Documentation'}
    p['classifiers'] = sorted(p.get('classifiers', []))  # their order says nothing
    p['optional-dependencies'] = {'dev': p.get('optional-dependencies', {}).get('dev')}  # ini knows this extra alone
    return p

def _differences(mine, theirs):
    a, b = _facts(mine), _facts(theirs)
    out = {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    here = mine['tool']['nbdev']
    out |= {k: (here.get(k), v) for k, v in theirs['tool']['nbdev'].items() if here.get(k) != v}
    return out

@pytest.fixture
def pyproject(root): return tomllib.loads((root/'pyproject.toml').read_text())

def test_mirror(root, pyproject, tmp_path):
    assert _differences(pyproject, _migrated(root/'settings.ini', tmp_path)) == {}

def test_mirror_sees_a_drift(root, pyproject, tmp_path):
    ini = tmp_path/'drifted.ini'
    text = (root/'settings.ini').read_text()
    ini.write_text(text.replace('min_python = 3.11', 'min_python = 3.12').replace('notest slow gpu', 'notest slow'))
    folder = tmp_path/'out'; folder.mkdir()
    assert set(_differences(pyproject, _migrated(ini, folder))) == {'requires-python', 'tst_flags'}

def test_version(root):
    ini = re.search(r'^version = (.+)$', (root/'settings.ini').read_text(), re.M)[1]
    assert ini == re.search(r'^__version__ = "(.+)"', (root/'omni_lite/__init__.py').read_text(), re.M)[1]

def test_dependencies_are_pinned(root, pyproject):
    "Every package that pyproject asks for has its version in constraints.txt, and no local build is named."
    text = (root/'constraints.txt').read_text()
    same = lambda n: re.sub(r'[-_.]+', '-', n).lower()
    pins = {same(l.split('==')[0]) for l in text.splitlines() if '==' in l and not l.startswith('#')}
    asked = pyproject['project']['dependencies'] + sum(pyproject['project']['optional-dependencies'].values(), [])
    names = {same(re.match(r'[\w.-]+', r)[0]) for r in asked} - {'omni-lite'}
    assert names <= pins, names - pins
    assert '+' not in text

def test_subpackages_are_packaged(root, pyproject):
    "The glob that finds packages must reach subpackages, or a built wheel lacks them."
    from setuptools import find_packages
    found = set(find_packages(str(root), include=pyproject['tool']['setuptools']['packages']['find']['include']))
    here = {'.'.join(p.parent.relative_to(root).parts) for p in (root/'omni_lite').rglob('__init__.py')}
    assert found == here
    python = {'.'.join(p.parent.relative_to(root).parts) for p in (root/'omni_lite').rglob('*.py')}
    assert python <= found, f'no __init__.py in {python - found}'
