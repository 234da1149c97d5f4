"""The command line: quick help, and one sentence instead of a traceback."""
import subprocess, sys, time, tomllib
import pytest
from hypothesis import given, strategies as st
from omni_lite import cli
from omni_lite.cli import main, parse_budget

def run(capsys, *args):
    with pytest.raises(SystemExit) as end: main(list(args))
    return end.value.code, *capsys.readouterr()

def test_entry_point(root):
    assert tomllib.loads((root/'pyproject.toml').read_text())['project']['scripts'] == {'omni-lite': 'omni_lite.cli:main'}

def test_help(record_property):
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-m', 'omni_lite.cli', '--help'], capture_output=True, text=True, check=True)
    record_property('help_seconds', round(time.perf_counter() - start, 2))  # meant to be at most 0.7; recorded only
    for name in 'doctor demo train report world fetch inspect bench plan chat'.split(): assert f'\n  {name} ' in done.stdout

@pytest.mark.parametrize('name', 'doctor demo train report world fetch inspect bench plan chat'.split())
def test_help_of_each(capsys, name):
    code, out, err = run(capsys, name, '--help')
    assert code == 0 and f'omni-lite {name}' in out and not err

def test_version(capsys):
    code, out, _ = run(capsys, '--version')
    assert code == 0 and out == f'omni_lite {cli.__version__}\n'

@pytest.mark.parametrize('text,seconds', [('15m', 900), ('3h', 10800), ('900s', 900), ('1h30m', 5400), ('0.5h', 1800), (' 2M ', 120)])
def test_budget(text, seconds): assert parse_budget(text) == seconds

@given(h=st.integers(0, 99), m=st.integers(0, 999), s=st.integers(1, 9999))
def test_budget_adds_up(h, m, s): assert parse_budget(f'{h}h{m}m{s}s') == 3600*h + 60*m + s

@pytest.mark.parametrize('text', ['', '15', '0m', '-3m', '15 minutes', 'm', '30m1h', '1.h', 'inf', 'nan', '15m;rm'])
def test_bad_budget(text):
    with pytest.raises(ValueError, match='not a budget of time'): parse_budget(text)

@given(st.text(max_size=8))
def test_budget_never_crashes_otherwise(text):
    try: assert parse_budget(text) > 0
    except ValueError as e: assert 'budget' in str(e)

@pytest.mark.parametrize('args,says', [
    (['train', '--budget', '15'], "'15' is not a budget of time"),
    (['train', '--from', '/nowhere'], '/nowhere is not a folder with a checkpoint'),
    (['train', '--resume', '--out', '/nowhere'], 'nothing to resume'),
    (['train', '--stages', '3'], 'name its folder with --from'),
    (['report', '--model', '/nowhere'], '/nowhere is not a folder'),
    (['demo', '--model', '/nowhere'], '/nowhere is not a folder'),
    (['fetch', 'nothing'], "no package group 'nothing'"),
    (['fetch', 'hibari', 'judge', '--folder', 'x'], '--folder takes one'),
    (['inspect', '/nowhere.png'], '/nowhere.png does not exist'),
    (['bench', 'nothing'], "no bench 'nothing'"),
])
def test_one_sentence(capsys, args, says):
    code, out, err = run(capsys, *args)
    assert code == 2 and says in err and err.startswith('omni-lite: ') and err.count('\n') == 1 and 'Traceback' not in err

@pytest.mark.parametrize('args', [['nothing'], ['train', '--world', 'big'], ['train', '--nothing'], ['inspect']])
def test_usage(capsys, args):
    code, _, err = run(capsys, *args)
    assert code == 2 and 'Error' in err and 'Traceback' not in err

def test_debug_shows_the_error():
    with pytest.raises(ValueError): main(['train', '--budget', '15', '--debug'])

def test_missing_checkpoint_names_the_cure(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('OMNI_LITE_MODEL', str(tmp_path/'none'))
    code, _, err = run(capsys, 'report')
    assert code == 2 and 'omni-lite train' in err

@pytest.mark.parametrize('missing,says', [('gradio', 'omni_lite[apps]'), ('faster_whisper', 'omni_lite[judge]'),
                                          ('omni_lite.later', 'has no omni_lite.later'), ('zzz', 'omni-lite doctor')])
def test_missing_module(capsys, monkeypatch, missing, says):
    def fails(*a, **k): raise ModuleNotFoundError(f'No module named {missing!r}', name=missing)
    monkeypatch.setattr('omni_lite.fetch.describe', fails)
    code, _, err = run(capsys, 'fetch')
    assert code == 2 and says in err

def test_parts_of_a_typed_line(tmp_path):
    picture = tmp_path/'a.PNG'; picture.touch()
    assert cli._parts(f'what is @{picture} this') == [{'type': 'image', 'image': str(picture)}, {'type': 'text', 'text': 'what is this'}]
    with pytest.raises(FileNotFoundError): cli._parts('@/nowhere.wav hear')
    with pytest.raises(ValueError, match='not a picture'): cli._parts('@/nowhere.doc')

def test_fetch_lists(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv('OMNI_LITE_CACHE', str(tmp_path))
    code, out, _ = run(capsys, 'fetch')
    assert code == 0 and 'hibari-tts==0.2.1' in out and 'CC-BY-4.0' in out

def test_inspect_names_kind_and_tokens(capsys):
    "Pictures, clips and sounds of data_samples, counted on the nano rung."
    from omni_lite.config import preset
    from omni_lite.paths import root
    from omni_lite.plan import cost_of
    home = root()/'data_samples'
    assert 'picture' in cost_of(home/'photo_cat.jpg', preset('nano'))
    assert 'frames' in cost_of(home/'clips'/'cat_goes_left.mp4', preset('nano'))
    assert 'tokens of 80 ms' in cost_of(home/'sounds'/'bell.wav', preset('nano'))

def test_plan_counts_the_7b_head_as_the_fact_sheet_does():
    "1.457 billion elements in the audio head, of which the heads and unused biases of the release are a small part."
    from omni_lite.plan import plan_rows
    rows = {r['part']: r['millions'] for r in plan_rows('7b')}
    assert abs(rows['head'] - 1457) < 5
    assert abs(rows['llm'] - 7616) < 10
