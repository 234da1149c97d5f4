"""The doctor: a row for each trouble, a cure in each row, and repairs that touch nothing else."""
import json, sys
from pathlib import Path
import pytest
from omni_lite import doctor
from omni_lite.doctor import Check, lacks_cuda, link_ffmpeg, report, strip_torchaudio

CUDA = ('OSError: Could not load this library: /x/torchaudio/lib/_torchaudio.abi3.so <- '
        'OSError: libc10_cuda.so: cannot open shared object file: No such file or directory')
WELL = {n: dict(state='ok', detail='1') for n in ('torch', 'torchaudio')} | \
       {n: dict(state='absent', detail='not installed') for n in ('torchvision', 'torchcodec')}

@pytest.fixture
def probed(monkeypatch):
    "Stand in for the child process: the test says what it found."
    found = {k: dict(v) for k, v in WELL.items()}
    monkeypatch.setattr(doctor, 'probe', lambda: found)
    return found

def row(name): return next(c for c in doctor.checks() if c.name == name)

def test_probe_is_real():
    found = doctor.probe()
    assert set(found) == {'torch', 'torchaudio', 'torchvision', 'torchcodec'}
    assert found['torch']['state'] == 'ok' and found['torch']['detail'][0].isdigit()

def test_companions_are_absent_or_importable():
    "A broken torchaudio, torchvision or torchcodec surfaces as a transformers error far away."
    assert not {n: f for n, f in doctor.probe().items() if f['state'] == 'broken'}

def test_probe_survives_a_dead_child(monkeypatch):
    monkeypatch.setattr(doctor, 'PROBE', 'import os; os._exit(9)')
    assert all(f['state'] == 'broken' and '9' in f['detail'] for f in doctor.probe().values())

def test_every_fault_has_a_cure(probed, monkeypatch, tmp_path):
    for n in probed: probed[n] = dict(state='broken', detail=CUDA)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setattr(doctor, 'scripts_on_path', lambda: None)
    monkeypatch.setenv('OMNI_LITE_CACHE', str(tmp_path)); monkeypatch.setenv('OMNI_LITE_MODEL', str(tmp_path/'none'))
    rows = {c.name: c for c in doctor.checks()}
    for n in ('torch', 'torchaudio', 'torchvision', 'torchcodec', 'ffmpeg', 'chromium', 'checkpoint', 'judge'):
        assert not rows[n].ok and rows[n].cure and rows[n].detail, n
    assert not rows['chromium'].needed and not rows['checkpoint'].needed and rows['torchvision'].needed
    text = report(list(rows.values()))
    assert text.count('cure:') == sum(not c.ok for c in rows.values()) and 'FIX  torch ' in text

@pytest.mark.parametrize('detail,cuda', [
    (CUDA, True), ('OSError: libcudart.so.13: cannot open shared object file', True), ('undefined symbol: __cudaGetKernel', True),
    ('OSError: libnvrtc.so.13: cannot open', True), ("ImportError: cannot import name 'x'", False),
    ('OSError: libgomp.so.1: cannot open shared object file', False), ('OSError: libcurl.so.4: cannot open', False)])
def test_lacks_cuda(detail, cuda): assert lacks_cuda(detail) is cuda

def test_torchaudio_is_stripped_only_where_cuda_is_missing(probed, monkeypatch):
    stripped = []
    monkeypatch.setattr(doctor, 'strip_torchaudio', lambda home: stripped.append(home) or ['a.so'])
    monkeypatch.setattr(doctor.shutil, 'which', lambda _: '/bin/ffmpeg')
    assert doctor.repair() == [] and not stripped
    probed['torchaudio'] = dict(state='broken', detail='ImportError: something else')
    assert doctor.repair() == [] and not stripped
    probed['torchaudio'] = dict(state='broken', detail=CUDA)
    assert 'linked for CUDA' in doctor.repair()[0] and stripped[0].name == 'torchaudio'

def test_strip_deletes_nothing_else(tmp_path):
    (tmp_path/'lib/sub').mkdir(parents=True)
    for f in ('lib/a.so', 'lib/b.abi3.so', 'lib/__init__.py', 'lib/sub/c.so', 'd.so'): (tmp_path/f).touch()
    assert strip_torchaudio(tmp_path) == ['a.so', 'b.abi3.so']
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*') if p.is_file()) == ['d.so', 'lib/__init__.py', 'lib/sub/c.so']

def test_ffmpeg_link_runs_and_replaces_a_dead_one(tmp_path):
    pytest.importorskip('imageio_ffmpeg')
    (tmp_path/'ffmpeg').symlink_to(tmp_path/'gone')
    link = link_ffmpeg(tmp_path)
    import subprocess
    assert 'ffmpeg version' in subprocess.run([str(link), '-version'], capture_output=True, text=True, check=True).stdout

@pytest.mark.parametrize('broken,code', [(None, 0), ('torchvision', 1), ('torch', 1)])
def test_exit_code_and_json(probed, monkeypatch, capsys, broken, code):
    monkeypatch.setattr(doctor, '_ffmpeg', lambda: Check('ffmpeg', True, 'x'))
    if broken: probed[broken] = dict(state='broken', detail='ImportError: x')
    assert doctor.main(['--json']) == code
    said = json.loads(capsys.readouterr().out)
    assert said['ok'] is (code == 0) and {'name', 'ok', 'detail', 'cure', 'needed'} == set(said['checks'][0])

def test_old_python(monkeypatch):
    monkeypatch.setattr(doctor, 'PYTHON', (sys.version_info[0], sys.version_info[1] + 1))
    assert not doctor._python().ok

def test_checkpoint(monkeypatch, tmp_path, probed):
    monkeypatch.setenv('OMNI_LITE_MODEL', str(tmp_path))
    assert not row('checkpoint').ok
    (tmp_path/'model.safetensors').touch()
    assert row('checkpoint').ok
