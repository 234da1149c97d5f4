"""Fetching: hashes decide, parts join, nothing half-made is left. No test here downloads anything."""
import hashlib, re, tarfile, zipfile
from pathlib import Path
import pytest
from omni_lite import fetch as F
from omni_lite.fetch import GROUPS, Group, Pin, describe, fetch, fetched, try_fetch

sha = lambda b: hashlib.sha256(b).hexdigest()
quiet = dict(say=lambda s: None)

def build(parts, out):
    (out/'whole.bin').write_bytes((parts['toy-a']/'toy_a/one.bin').read_bytes() + (parts['toy-b']/'package/two.bin').read_bytes())

@pytest.fixture
def toy(tmp_path, monkeypatch):
    "A group of a wheel and an npm archive that lie in the archive folder of an empty cache."
    monkeypatch.setenv('OMNI_LITE_CACHE', str(tmp_path/'cache'))
    kept = tmp_path/'cache/archives'; kept.mkdir(parents=True)
    with zipfile.ZipFile(kept/'toy_a-1.0-py3-none-any.whl', 'w') as z: z.writestr('toy_a/one.bin', b'one')
    (tmp_path/'two.bin').write_bytes(b'two')
    with tarfile.open(kept/'toy-b-2.0.tgz', 'w:gz') as t: t.add(tmp_path/'two.bin', 'package/two.bin')
    pins = (Pin('toy-a', '1.0', F.sha256_of(kept/'toy_a-1.0-py3-none-any.whl'), 1, 'MIT', 'nobody', module='toy_a_not_there'),
            Pin('toy-b', '2.0', F.sha256_of(kept/'toy-b-2.0.tgz'), 1, 'MIT', 'nobody', registry='npm'))
    group = Group('tests', 'nothing is lost', 'whole.bin', pins, build, {'whole.bin': sha(b'onetwo')})
    monkeypatch.setitem(GROUPS, 'toy', group)
    def no_network(*a, **k): raise AssertionError('a test tried to download')
    monkeypatch.setattr(F, '_pip_download', no_network)
    return tmp_path/'cache'

def test_joins_and_is_kept(toy):
    assert fetched('toy') is None
    at = fetch('toy', **quiet)
    assert (at/'whole.bin').read_bytes() == b'onetwo' and at.parent == toy
    for f in (toy/'archives').iterdir(): f.unlink()
    assert fetch('toy', **quiet) == at == fetched('toy')
    assert {p.name for p in toy.iterdir()} == {'archives', at.name}

def test_into_a_folder(toy, tmp_path):
    at = fetch('toy', tmp_path/'here', **quiet)
    assert at == tmp_path/'here' and (at/'whole.bin').is_file() and fetched('toy') is None
    assert fetch('toy', at, **quiet) == at
    (at/'whole.bin').write_bytes(b'changed')
    with pytest.raises(ValueError, match='something that is not toy'): fetch('toy', at, **quiet)

@pytest.mark.parametrize('name', ['toy_a-1.0-py3-none-any.whl', 'toy-b-2.0.tgz'])
def test_changed_archive_is_refused_and_deleted(toy, name):
    bad = toy/'archives'/name
    bad.write_bytes(bad.read_bytes() + b'x')
    with pytest.raises(ValueError, match='is pinned'): fetch('toy', **quiet)
    assert not bad.exists() and fetched('toy') is None and {p.name for p in toy.iterdir()} == {'archives'}

def test_wrong_contents_are_refused(toy, monkeypatch):
    group = GROUPS['toy']
    monkeypatch.setitem(GROUPS, 'toy', Group(group.use, '', '', group.pins, build, {'whole.bin': sha(b'other')}))
    with pytest.raises(ValueError, match='not the pinned ones'): fetch('toy', **quiet)
    assert fetched('toy') is None

def test_without_npm(toy, monkeypatch):
    (toy/'archives/toy-b-2.0.tgz').unlink()
    monkeypatch.setattr(F.shutil, 'which', lambda _: None)
    with pytest.raises(FileNotFoundError, match='npm is not on PATH'): fetch('toy', **quiet)
    said = []
    assert try_fetch('toy', say=said.append) is None
    assert 'npm is not on PATH' in said[-1] and 'Without it, nothing is lost.' in said[-1]

def test_installed_package_is_used_if_its_hash_agrees(toy, tmp_path, monkeypatch):
    home = tmp_path/'site/toy_there'; home.mkdir(parents=True)
    (home/'__init__.py').touch(); (home/'data.bin').write_bytes(b'x')
    monkeypatch.syspath_prepend(str(home.parent))
    pin = lambda b: Pin('toy-there', '1', '', 1, 'MIT', '', module='toy_there', files={'data.bin': sha(b)})
    assert F._installed(pin(b'x')) == home.parent and F._installed(pin(b'y')) is None

def test_failed_download_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv('OMNI_LITE_CACHE', str(tmp_path))
    class Done: returncode, stderr = 1, 'noise\nERROR: no such host\nmore noise'
    monkeypatch.setattr(F.subprocess, 'run', lambda *a, **k: Done)
    with pytest.raises(FileNotFoundError, match='no such host.*archives'): F._run(['pip'], tmp_path, 'toy==1')

def test_unknown_group():
    with pytest.raises(ValueError, match='hibari'): fetch('nothing')

@pytest.mark.parametrize('name', [n for n in GROUPS])
def test_manifest(name):
    group = GROUPS[name]
    assert group.use and group.without and group.holds and group.proof
    for p in group.pins:
        assert re.fullmatch(r'[0-9a-f]{64}', p.sha256) and p.licence and p.credit and p.mb > 0 and p.registry in ('pypi', 'npm')
        assert all(re.fullmatch(r'[0-9a-f]{64}', s) for s in p.files.values()) and bool(p.module) == (p.registry == 'pypi')
    assert all(p.spec in describe(name) and p.licence in describe(name) for p in group.pins)

@pytest.mark.fetched
def test_judge_reads_hibari():
    "The judge loads from its joined folder and writes down what the fetched voice says."
    pytest.importorskip('faster_whisper'); pytest.importorskip('onnxruntime')
    if not (fetched('judge') and fetched('hibari')): pytest.skip('omni-lite fetch judge hibari')
    import sys
    sys.path.insert(0, str(fetched('hibari')))
    import torch
    from faster_whisper import WhisperModel
    from hibari import Hibari
    from torchaudio.functional import resample
    wav = resample(torch.from_numpy(Hibari()('There are three red apples on the table.')), 24000, 16000).numpy()
    segments, _ = WhisperModel(str(fetched('judge')), device='cpu', compute_type='int8', cpu_threads=1).transcribe(wav, language='en')
    heard = re.sub(r'[^a-z0-9 ]', '', ' '.join(s.text for s in segments).lower()).split()
    assert ' '.join(heard).replace('3', 'three') == 'there are three red apples on the table'
